"""ScratchDet's SGD: L2 weight decay in the gradient, momentum, warm-up and step drops."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from scratchdet_jax.config.fields import run_ends
from scratchdet_jax.models.parts import frozen_mask, frozen_names, kinds, split_names


def make_schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
    """Makes the learning rate by update: linear warm-up times multi-step drops.

    The base rate is `optimizer.learning_rate` times `batch_size / reference_batch_size` (linear
    scaling, Goyal et al. 2017). Warm-up rises linearly from `warmup_start` times that rate (mmdet
    release: a third, over 500 updates) and lasts at most a tenth of the run. A drop takes effect at
    update `drop_at × steps`. Once the run's own length is complete, the rate of an extension
    (`config.extend`) is that of a run of the longer total at the same update, so it usually rises
    again before its remaining drops.
    """
    settings = config.optimizer
    rate = settings.learning_rate
    if settings.reference_batch_size:
        rate *= config.batch_size / settings.reference_batch_size
    first, *longer = run_ends(config)
    schedule = _drops(rate, first, settings)
    warmup_steps = min(settings.warmup_steps, first // 10)
    if warmup_steps:
        warmup = optax.linear_schedule(settings.warmup_start, 1.0, warmup_steps)
        drops = schedule
        schedule = lambda step: warmup(step) * drops(step)  # noqa: E731
    for end, total in zip((first, *longer), longer, strict=False):
        schedule = _from(end, schedule, _drops(rate, total, settings))
    return schedule


def _drops(rate: float, steps: int, settings: ml_collections.ConfigDict) -> optax.Schedule:
    """The rate with its drops in a run of `steps` updates."""
    return optax.piecewise_constant_schedule(
        rate, {round(share * steps): settings.drop_factor for share in settings.drop_at}
    )


def _from(end: int, before: optax.Schedule, after: optax.Schedule) -> optax.Schedule:
    """One schedule up to update `end`, another one from there on."""
    return lambda step: jnp.where(step < end, before(step), after(step))


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
        optax.sgd(make_schedule(config), momentum=settings.momentum),
    ]
    if settings.bias_lr_mult != 1:
        parts.append(optax.masked(optax.scale(settings.bias_lr_mult), biases))
    return optax.chain(*parts)
