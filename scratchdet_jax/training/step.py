"""One training step of one replica: where data, anchors, model and loss meet.

The step is a pure function of (state, batch, seed). It is written for one replica whose peers
share the axis `batch`; parallel/devices.py maps it over the devices.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from scratchdet_jax.detector import Batch, Detector
from scratchdet_jax.models.parts import PARTS, part_of
from scratchdet_jax.ops.losses import MultiBoxSums
from scratchdet_jax.parallel.devices import AXIS
from scratchdet_jax.run.state import FINITE, TrainState, follow
from scratchdet_jax.training.optimizer import make_schedule

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
    platform = platform or jax.default_backend()
    schedule = make_schedule(config)

    def sums_and_gradients(
        params: Any, batch_stats: Any, images: jax.Array, targets: Any
    ) -> tuple[Any, Any, MultiBoxSums]:
        def loss(params: Any) -> tuple[jax.Array, tuple[Any, MultiBoxSums]]:
            sums, updated = detector.loss(params, batch_stats, images, targets)
            return sums.total, (updated, sums)

        gradients, (batch_stats, sums) = jax.grad(loss, has_aux=True)(params)
        return gradients, batch_stats, sums

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        count, local = batch["labels"].shape[:2]
        rows = jax.lax.axis_index(AXIS) * local + jnp.arange(local)
        microbatch_size = jax.lax.psum(1, AXIS) * local

        def accumulate(carry: Any, part: tuple[jax.Array, Batch]) -> tuple[Any, None]:
            gradients, batch_stats, sums = carry
            index, microbatch = part
            keys = example_keys(config.seed, state.step, index * microbatch_size + rows)
            # The inputs are complete before the network starts, not fused into its first layers.
            with jax.named_scope("inputs"):
                inputs = detector.inputs(microbatch, keys)
            images, targets = jax.lax.optimization_barrier(inputs)
            new, batch_stats, new_sums = sums_and_gradients(
                state.params, batch_stats, images, targets
            )
            add = jax.tree.map(jnp.add, (gradients, sums), (new, new_sums))
            return (add[0], batch_stats, add[1]), None

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        carry = (zeros, state.batch_stats, MultiBoxSums(*[jnp.zeros(())] * 3))
        if count == 1 or platform == "cpu":
            # XLA's convolutions on CPU are some 20 times slower inside a loop.
            for i in range(count):
                carry, _ = accumulate(carry, (i, jax.tree.map(lambda x: x[i], batch)))  # noqa: B023
        else:
            carry, _ = jax.lax.scan(accumulate, carry, (jnp.arange(count), batch))
        gradients, batch_stats, sums = carry

        with jax.named_scope("update"):
            gradients, sums = jax.lax.psum((gradients, sums), AXIS)
            positives = jnp.maximum(sums.positives, 1.0)  # no positives: loss 0, never 0/0
            gradients = jax.tree.map(lambda g: g / positives, gradients)
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            metrics = {
                "loss": sums.total / positives,
                "loss_classification": sums.classification / positives,
                "loss_localization": sums.localization / positives,
                "positives": sums.positives,
                "learning_rate": schedule(state.step),
                **gradient_norms(gradients),
            }
            new_state = state.replace(
                step=state.step + 1,
                params=optax.apply_updates(state.params, updates),
                batch_stats=batch_stats,
                opt_state=opt_state,
            )
            return update_unless_diverged(state, follow(new_state, config.ema_decay), metrics)

    return train_step
