"""ScratchDet's SGD: L2 weight decay in the gradient, and momentum."""

from typing import Any

import jax
import ml_collections
import optax

from scratchdet_jax.models.parts import frozen_mask, frozen_names, kinds, split_names
from scratchdet_jax.training.schedule import learning_rate


def make_optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Makes SGD with momentum; weight decay is added to the gradient (L2).

    `optimizer.no_decay` names the kinds of parameters without weight decay. Those of
    `config.freeze` get none, either; they have no gradient (see Detector.forward), so their
    momentum and their updates are 0. The rate of convolutions' biases is `bias_lr_mult` times that
    of the other parameters.
    """
    settings = config.optimizer
    frozen, without = frozen_names(config.freeze), set(split_names(settings.no_decay))

    def decays(params: Any) -> Any:
        masks = frozen_mask(params, frozen), kinds(params)
        return jax.tree.map(lambda _, fixed, own: not (fixed or without & {*own}), params, *masks)

    def biases(params: Any) -> Any:
        return jax.tree.map(lambda _, own: "biases" in own, params, kinds(params))

    parts = [
        optax.add_decayed_weights(settings.weight_decay, decays if frozen or without else None),
        optax.sgd(learning_rate(config), momentum=settings.momentum),
    ]
    if settings.bias_lr_mult != 1:
        parts.append(optax.masked(optax.scale(settings.bias_lr_mult), biases))
    return optax.chain(*parts)
