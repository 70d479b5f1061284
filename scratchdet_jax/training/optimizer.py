"""The course of a run (length, learning rate, what is due, early end) and its optimizer, SGD."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from scratchdet_jax.config.defaults import run_ends
from scratchdet_jax.models.parts import frozen_mask, kinds, split_names


class Schedule:
    """The course that a config describes.

    Attributes:
        ends: numbers of updates at which the run, and then each of its extensions, is complete.
        steps: number of updates of the complete run, its extensions included.
        learning_rate: of an update, counted from 0; see `learning_rate`.
    """

    def __init__(self, config: ml_collections.ConfigDict) -> None:
        """Reads `config`, which must be valid."""
        self.ends = run_ends(config)
        self.steps = self.ends[-1]
        self.learning_rate = learning_rate(config)
        self._evaluates = bool(config.data.eval)
        self._evaluation_period = config.eval.every_steps
        self._checkpoint_period = config.checkpoint_every

    def extends(self, step: int) -> bool:
        """Returns whether an extension begins after update `step`."""
        return step in self.ends[:-1]

    def evaluation_due(self, step: int) -> bool:
        """Returns whether the run evaluates after update `step`."""
        if not self._evaluates:
            return False
        periodic = self._evaluation_period > 0 and step % self._evaluation_period == 0
        return periodic or step in self.ends

    def checkpoint_due(self, step: int) -> bool:
        """Returns whether the run saves a checkpoint after update `step`: also to evaluate it."""
        periodic = self._checkpoint_period > 0 and step % self._checkpoint_period == 0
        return periodic or step in self.ends or self.evaluation_due(step)


def learning_rate(config: ml_collections.ConfigDict) -> optax.Schedule:
    """Returns the learning rate by update: linear warm-up times multi-step drops.

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
    first, *longer = ends = run_ends(config)
    schedule = _drops(rate, first, settings)
    if warmup_steps := min(settings.warmup_steps, first // 10):
        warmup = optax.linear_schedule(settings.warmup_start, 1.0, warmup_steps)
        schedule = _product(warmup, schedule)
    for end, total in zip(ends, longer, strict=False):
        schedule = _from(end, schedule, _drops(rate, total, settings))
    return schedule


def _drops(rate: float, steps: int, settings: ml_collections.ConfigDict) -> optax.Schedule:
    """Returns the rate with its drops in a run of `steps` updates."""
    return optax.piecewise_constant_schedule(
        rate, {round(share * steps): settings.drop_factor for share in settings.drop_at}
    )


def _product(a: optax.Schedule, b: optax.Schedule) -> optax.Schedule:
    return lambda step: a(step) * b(step)


def _from(end: int, before: optax.Schedule, after: optax.Schedule) -> optax.Schedule:
    """Returns a schedule that is `before` up to update `end`, and `after` from there on."""
    return lambda step: jnp.where(step < end, before(step), after(step))


def make_optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Makes SGD with momentum; weight decay is added to the gradient (L2).

    `optimizer.no_decay` names the kinds of parameters without weight decay. Those of
    `config.freeze` get none, either; they have no gradient (see Detector.forward), so their
    momentum and their updates are 0. The rate of convolutions' biases is `bias_lr_mult` times that
    of the other parameters.
    """
    settings = config.optimizer
    frozen, without = split_names(config.freeze), set(split_names(settings.no_decay))

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


class Improvement(NamedTuple):
    """The evaluations of a run so far; a checkpoint keeps it, so a resumed run decides the same.

    Attributes:
        best: the highest mAP; None if there is none.
        since: evaluations since then. An undefined mAP is no improvement.
    """

    best: float | None = None
    since: int = 0

    def after(self, score: float | None) -> "Improvement":
        """Returns what is known after another evaluation; an equal mAP is no improvement."""
        if score is not None and (self.best is None or score > self.best):
            return Improvement(score)
        return Improvement(self.best, self.since + 1)

    def ends(self, stop_after: int) -> bool:
        """Returns whether a run ends: after `stop_after` evaluations without improvement."""
        return 0 < stop_after <= self.since

    @classmethod
    def from_json(cls, progress: dict[str, Any] | None) -> "Improvement":
        """Reads the `progress` of a checkpoint; None before the first one."""
        return cls(*(progress or {}).get("improvement", ()))
