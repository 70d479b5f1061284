"""One training step of one replica: where data, anchors, model and loss meet.

The step is a pure function of (state, batch, seed). It is written for one replica whose peers
share the axis `batch`; parallel.py maps it over the devices.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from scratchdet_jax.detector import Detector, augment_options, normalize
from scratchdet_jax.ops.augment import augment
from scratchdet_jax.ops.losses import MultiBoxSums, multibox_sums
from scratchdet_jax.ops.matching import Targets, match
from scratchdet_jax.parallel.devices import AXIS
from scratchdet_jax.run.state import FINITE, TrainState
from scratchdet_jax.training.optimizer import make_schedule

PARTS = ("backbone", "extras", "head")
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def prepare_inputs(
    config: ml_collections.ConfigDict, detector: Detector, batch: Batch, keys: jax.Array
) -> tuple[jax.Array, Targets]:
    """Augments a batch and matches it to the anchors.

    Args:
        config: a run's config.
        detector: the detector.
        batch: image uint8 [b, H, W, 3], size [b, 2], boxes [b, M, 4], labels and ignore [b, M].
        keys: one random key per image, [b].

    Returns:
        Normalised images float32 [b, S, S, 3] and Targets with a leading axis b.
    """
    options = augment_options(config)

    def one(key: jax.Array, example: Batch) -> tuple[jax.Array, Targets]:
        image, boxes, labels, ignore = augment(
            key,
            example["image"],
            example["size"],
            example["boxes"],
            example["labels"],
            example["ignore"],
            options,
            config.image_size,
        )
        if not config.data.train_on_ignored:
            labels = jnp.where(ignore, 0, labels)
        return image, match(jnp.asarray(detector.anchors), boxes, labels, config.loss.match_iou)

    used = {k: batch[k] for k in ("image", "size", "boxes", "labels", "ignore")}
    images, targets = jax.vmap(one)(keys, used)
    return normalize(images, config.normalize), targets


def example_keys(seed: int, step: jax.Array, positions: jax.Array) -> jax.Array:
    """One key per example from (seed, step, position in the global batch) and nothing else."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda position: jax.random.fold_in(key, position))(positions)


def training_sums(
    config: ml_collections.ConfigDict,
    detector: Detector,
    params: Any,
    batch_stats: Any,
    images: jax.Array,
    targets: Targets,
) -> tuple[MultiBoxSums, Any]:
    """The sums of the loss over images [b, S, S, 3] in training mode, and the new BatchNorm state.

    The loss is total / positives.
    """
    (logits, offsets), updated = detector.model.apply(
        {"params": params, "batch_stats": batch_stats}, images, train=True, mutable=["batch_stats"]
    )
    sums = multibox_sums(
        logits, offsets, targets.labels, targets.offsets, config.loss.negative_ratio
    )
    return sums, updated.get("batch_stats", {})


def part_of(name: str) -> str:
    """The part of the detector (one of PARTS) that a top-level name of its parameters is in."""
    if name == "head":
        return "head"
    return "extras" if name.startswith("extra") else "backbone"


def gradient_norms(gradients: dict[str, Any]) -> Metrics:
    """L2 norms of a gradient tree: `gradient_norm`, and `gradient_norm_<part>` of each part.

    Each array is read once: the whole is put together from the parts' squares.
    """
    squares = dict.fromkeys(PARTS, jnp.zeros(()))
    for name, tree in gradients.items():
        squares[part_of(name)] += optax.tree.norm(tree, squared=True)
    norms = {f"gradient_norm_{part}": jnp.sqrt(square) for part, square in squares.items()}
    return {"gradient_norm": jnp.sqrt(sum(squares.values()))} | norms


def all_finite(tree: Any) -> jax.Array:
    """Whether no number of a tree is infinite or NaN; bool scalar.

    0·x is 0 or NaN, so one sum tells; a flag for each array compiles much more slowly on CPU.
    """
    return jnp.isfinite(sum((jnp.sum(x * 0.0) for x in jax.tree.leaves(tree)), jnp.zeros(())))


def update_unless_diverged(
    state: TrainState, new_state: TrainState, metrics: Metrics
) -> tuple[TrainState, Metrics]:
    """`new_state` if the update is finite, else `state` marked so that it stays as it is.

    The host reads metrics a step late, when the next update is under way and the state's buffers
    are reused. So the device decides: a state whose update is not finite keeps its arrays, and its
    step turns negative (`~step`), which every later update leaves alone.

    Returns:
        The state, and the metrics with FINITE of `statistics` and `parameters` among them.
    """
    told = {
        "statistics": all_finite(new_state.batch_stats),
        "parameters": all_finite((new_state.params, new_state.opt_state)),
    }
    good = (state.step >= 0) & all_finite(metrics) & told["statistics"] & told["parameters"]
    # A branch: a select on each array would repeat the whole decision in each of their loops.
    kept = jax.lax.cond(good, lambda new, old: new, lambda new, old: old, new_state, state)
    marked = jnp.where(state.step >= 0, ~state.step, state.step)
    kept = kept.replace(step=jnp.where(good, new_state.step, marked))
    return kept, metrics | {FINITE + name: ok.astype(jnp.int32) for name, ok in told.items()}


def make_train_step(
    config: ml_collections.ConfigDict, detector: Detector, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step `(state, batch) → (state, metrics)` of one replica.

    Arrays of `batch` are [accumulate_steps, b, …]: the parts of the update's batch, one after
    the other. Sums of loss and gradient are taken over all parts and replicas and divided by the
    positives of the whole global batch at the end, so neither layout changes the result.

    An update that is not finite is not made; see update_unless_diverged.
    """
    schedule = make_schedule(config)

    def sums_and_gradients(
        params: Any, batch_stats: Any, images: jax.Array, targets: Targets
    ) -> tuple[Any, Any, MultiBoxSums]:
        def loss(params: Any) -> tuple[jax.Array, tuple[Any, MultiBoxSums]]:
            sums, updated = training_sums(config, detector, params, batch_stats, images, targets)
            return sums.total, (updated, sums)

        gradients, (batch_stats, sums) = jax.grad(loss, has_aux=True)(params)
        return gradients, batch_stats, sums

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        parts, local = batch["labels"].shape[:2]
        in_part = jax.lax.axis_index(AXIS) * local + jnp.arange(local)
        part_size = jax.lax.psum(1, AXIS) * local

        def part(carry: Any, inputs: tuple[jax.Array, Batch]) -> tuple[Any, None]:
            gradients, batch_stats, sums = carry
            index, batch = inputs
            keys = example_keys(config.seed, state.step, index * part_size + in_part)
            # Inputs are finished before the network starts, not fused into its first layers.
            images, targets = jax.lax.optimization_barrier(
                prepare_inputs(config, detector, batch, keys)
            )
            new, batch_stats, new_sums = sums_and_gradients(
                state.params, batch_stats, images, targets
            )
            add = jax.tree.map(jnp.add, (gradients, sums), (new, new_sums))
            return (add[0], batch_stats, add[1]), None

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        start = (zeros, state.batch_stats, MultiBoxSums(*[jnp.zeros(())] * 3))
        if parts == 1 or jax.default_backend() == "cpu":
            # XLA's convolutions on CPU are some 20 times slower inside a loop.
            done = start
            for i in range(parts):
                done, _ = part(done, (i, jax.tree.map(lambda x: x[i], batch)))  # noqa: B023
        else:
            done, _ = jax.lax.scan(part, start, (jnp.arange(parts), batch))
        gradients, batch_stats, sums = done

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
        return update_unless_diverged(state, new_state, metrics)

    return train_step
