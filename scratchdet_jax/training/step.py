"""One training step of one replica: where data, anchors, model and loss meet.

The step is a pure function of (state, batch, seed). It is written for one replica whose peers
share the axis `batch`; parallel/devices.py maps it over the devices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from scratchdet_jax.detector import Batch, Detector
from scratchdet_jax.models.parts import PARTS, part_of
from scratchdet_jax.ops.losses import MultiBoxSums
from scratchdet_jax.parallel.devices import AXIS
from scratchdet_jax.run.state import FINITE, TrainState, update_average
from scratchdet_jax.training.optimizer import learning_rate

Metrics = dict[str, jax.Array]


def example_keys(seed: int, step: jax.Array | int, positions: jax.Array) -> jax.Array:
    """Derives one key per example from (seed, step, position in the global batch) alone."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda position: jax.random.fold_in(key, position))(positions)


def gradient_norms(gradients: dict[str, Any]) -> Metrics:
    """Computes L2 norms of a gradient tree: `gradient_norm`, and `gradient_norm_<part>` per part.

    Each array is read once: the total is computed from the squares of the parts.
    """
    squares = dict.fromkeys(PARTS, jnp.zeros(()))
    for name, tree in gradients.items():
        squares[part_of(name)] += optax.tree.norm(tree, squared=True)
    norms = {f"gradient_norm_{part}": jnp.sqrt(square) for part, square in squares.items()}
    return {"gradient_norm": jnp.sqrt(sum(squares.values()))} | norms


def all_finite(tree: Any) -> jax.Array:
    """Returns whether every number of a tree is finite; bool scalar.

    0·x is 0 or NaN, so one sum is enough. A flag per array compiles much more slowly on CPU.
    """
    return jnp.isfinite(sum((jnp.sum(x * 0.0) for x in jax.tree.leaves(tree)), jnp.zeros(())))


def update_unless_diverged(
    state: TrainState, new_state: TrainState, metrics: Metrics
) -> tuple[TrainState, Metrics]:
    """Returns `new_state` if the update is finite, otherwise `state`, marked as diverged.

    The host reads metrics one step late, when the next update is running and the buffers of the
    state are reused. So the device decides: if an update is not finite, the state keeps its arrays
    and its step becomes negative (`~step`). Later updates leave a marked state unchanged.

    Returns:
        The state, and the metrics with FINITE + "statistics" and FINITE + "parameters" added.
    """
    finite = {
        "statistics": all_finite(new_state.batch_stats),
        "parameters": all_finite((new_state.params, new_state.opt_state)),
    }
    good = (state.step >= 0) & all_finite(metrics) & finite["statistics"] & finite["parameters"]
    # A branch: a select per array would repeat the decision in the loop of every array.
    kept = jax.lax.cond(good, lambda new, old: new, lambda new, old: old, new_state, state)
    marked = jnp.where(state.step >= 0, ~state.step, state.step)
    kept = kept.replace(step=jnp.where(good, new_state.step, marked))
    return kept, metrics | {FINITE + name: ok.astype(jnp.int32) for name, ok in finite.items()}


def make_train_step(
    detector: Detector, optimizer: optax.GradientTransformation, platform: str | None = None
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Makes the step `(state, batch) → (state, metrics)` of one replica.

    Arrays of `batch` are [accumulate_steps, b, …]: the microbatches of the update. Loss and
    gradient are summed over all microbatches and replicas, then divided by the number of positives
    of the global batch, so neither layout changes the result.

    An update that is not finite is not applied; see update_unless_diverged.

    `platform` is the one that the step is compiled for, by default JAX's own. The scopes "inputs"
    and "update" name the parts of the step in compiled programs, beside the model's and the loss's.
    """
    config = detector.config
    # XLA's convolutions on CPU are some 20 times slower inside a loop.
    unrolled = (platform or jax.default_backend()) == "cpu"
    rate = learning_rate(config)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        total = _over_microbatches(detector, state, batch, unrolled)
        with jax.named_scope("update"):
            gradients, sums = jax.lax.psum((total.gradients, total.sums), AXIS)
            positives = jnp.maximum(sums.positives, 1.0)  # no positives: loss 0, never 0/0
            gradients = jax.tree.map(lambda g: g / positives, gradients)
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            metrics = {
                "loss": sums.total / positives,
                "loss_classification": sums.classification / positives,
                "loss_localization": sums.localization / positives,
                "positives": sums.positives,
                "learning_rate": rate(state.step),
                **gradient_norms(gradients),
            }
            new_state = state.replace(
                step=state.step + 1,
                params=optax.apply_updates(state.params, updates),
                batch_stats=total.batch_stats,
                opt_state=opt_state,
            )
            new_state = update_average(new_state, config.ema_decay)
            return update_unless_diverged(state, new_state, metrics)

    return train_step


class _Total(NamedTuple):
    """What one replica sums over the microbatches of an update.

    Attributes:
        gradients: of the loss's sums, by parameter.
        batch_stats: BatchNorm's running statistics after the last microbatch.
        sums: the loss.
    """

    gradients: Any
    batch_stats: Any
    sums: MultiBoxSums


def _over_microbatches(
    detector: Detector, state: TrainState, batch: Batch, unrolled: bool
) -> _Total:
    """Sums loss and gradients over the microbatches, one after the other; `unrolled`: no loop."""
    count, local = batch["labels"].shape[:2]
    rows = jax.lax.axis_index(AXIS) * local + jnp.arange(local)
    positions = jnp.arange(count)[:, None] * jax.lax.axis_size(AXIS) * local + rows
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    total = _Total(zeros, state.batch_stats, MultiBoxSums(*[jnp.zeros(())] * 3))
    if unrolled or count == 1:
        for i in range(count):
            microbatch = {name: array[i] for name, array in batch.items()}
            total = _add_microbatch(detector, state, total, positions[i], microbatch)
        return total

    def add(total: _Total, part: tuple[jax.Array, Batch]) -> tuple[_Total, None]:
        return _add_microbatch(detector, state, total, *part), None

    return jax.lax.scan(add, total, (positions, batch))[0]


def _add_microbatch(
    detector: Detector, state: TrainState, total: _Total, positions: jax.Array, microbatch: Batch
) -> _Total:
    """Adds a microbatch [b, …], whose examples are at `positions` [b] of the global batch."""
    keys = example_keys(detector.config.seed, state.step, positions)
    with jax.named_scope("inputs"):
        inputs = detector.inputs(microbatch, keys)
    # The inputs are complete before the network starts, not fused into its first layers.
    images, targets = jax.lax.optimization_barrier(inputs)

    def loss(params: Any) -> tuple[jax.Array, tuple[Any, MultiBoxSums]]:
        sums, batch_stats = detector.loss(params, total.batch_stats, images, targets)
        return sums.total, (batch_stats, sums)

    gradients, (batch_stats, sums) = jax.grad(loss, has_aux=True)(state.params)
    gradients, sums = jax.tree.map(jnp.add, (total.gradients, total.sums), (gradients, sums))
    return _Total(gradients, batch_stats, sums)
