"""Repeats a diverged training step and reports what is not finite.

scratchdet replay --workdir=runs/voc300 [--step=1234]
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax.sharding import PartitionSpec as P

from scratchdet_jax import cli
from scratchdet_jax.config.defaults import with_defaults
from scratchdet_jax.detector import Detector, build_detector
from scratchdet_jax.errors import UserError, plural
from scratchdet_jax.ops.losses import multibox_sums
from scratchdet_jax.parallel.devices import AXIS, DeviceMapping
from scratchdet_jax.run.checkpoints import RunInfo, tuples
from scratchdet_jax.run.replay import FOLDER
from scratchdet_jax.run.state import TrainState
from scratchdet_jax.training.step import example_keys

SHOWN = 12  # most lines of a group


class Replay(NamedTuple):
    """A saved step.

    Attributes:
        step: number of the step, from 1.
        quantity: name of the quantity that was not finite.
        info: the run's config and class names.
        image_ids: ids of the batch's images, in order.
        batch: host arrays [accumulate_steps, B, …], as for the training step.
        state: the state before the step, without that of the optimizer.
    """

    step: int
    quantity: str
    info: RunInfo
    image_ids: tuple[str, ...]
    batch: dict[str, np.ndarray]
    state: TrainState


def load_replay(workdir: Path, step: int | None = None) -> Replay:
    """Reads a saved step, by default the newest.

    Raises:
        UserError: there is no such step, or the file is damaged.
    """
    files = {int(p.stem.removeprefix("step_")): p for p in (workdir / FOLDER).glob("step_*.npz")}
    if not files:
        raise UserError(f"{workdir / FOLDER} holds no step: a step is saved when training diverges")
    step = max(files) if step is None else step
    if step not in files:
        raise UserError(
            f"{workdir / FOLDER} has no step {step}; it has {', '.join(map(str, sorted(files)))}"
        )
    try:
        with np.load(files[step], allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(str(arrays.pop("about")))
        config = with_defaults(ml_collections.ConfigDict(tuples(about["config"])))
        info = RunInfo(config, tuple(about["class_names"]))
        tree = traverse_util.unflatten_dict(arrays, sep="/")
        kept = tree["state"]
        statistics = kept.get("batch_stats", {})
        state = TrainState(kept["step"], kept["params"], statistics, opt_state={})
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"{files[step]} cannot be read ({error}): it is damaged") from None
    return Replay(step, about["quantity"], info, tuple(about["image_ids"]), tree["batch"], state)


def bad(tree: Any) -> dict[str, tuple[int, int]]:
    """(numbers that are not finite, size) of each array that has such numbers, by its path."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        wrong = int(array.size - np.isfinite(array).sum())
        if wrong:
            found[jax.tree_util.keystr(path, simple=True, separator="/")] = (wrong, array.size)
    return found


def examine(replay: Replay, part: int = 0) -> dict[str, Any]:
    """Examines one microbatch of the step, quantity by quantity.

    A count is the number of elements that are not finite.

    Returns:
        "inputs": counts of the augmented images and the targets;
        "activations": (layer, count) of every layer in the order of the forward pass;
        "classification", "localization", "positives": the loss's sums per image, [B];
        "gradient_norms": by array; "gradients": `bad` of the gradients;
        "statistics": `bad` of BatchNorm's new statistics.
    """
    config = replay.info.config
    detector = build_detector(config, replay.info.class_names, AXIS)
    mapping = DeviceMapping("shard_map", jax.devices()[:1])  # the microbatch on one device
    batch = {key: value[part] for key, value in replay.batch.items()}
    names: list[str] = []

    def step(state: Any, batch: Any) -> dict[str, Any]:
        count = batch["labels"].shape[0]
        keys = example_keys(config.seed, state.step, part * count + jnp.arange(count))
        images, targets = detector.inputs(batch, keys)
        activations, (logits, offsets) = _forward(detector, state, images, names)
        by_image = jax.vmap(
            lambda logits, offsets, labels, wanted: multibox_sums(
                logits[None], offsets[None], labels[None], wanted[None], config.loss.negative_ratio
            )
        )(logits, offsets, targets.labels, targets.offsets)

        def loss(params: Any) -> tuple[jax.Array, Any]:
            sums, updated = detector.loss(params, state.batch_stats, images, targets)
            return sums.total, updated

        gradients, statistics = jax.grad(loss, has_aux=True)(state.params)
        inputs = {"images": _count(images), "target offsets": _count(targets.offsets)}
        return {
            "inputs": inputs,
            "activations": activations,
            "by_image": by_image,
            "gradients": gradients,
            "statistics": statistics,
        }

    mapped = jax.jit(
        jax.shard_map(step, mesh=mapping.mesh, in_specs=(P(), P()), out_specs=P(), check_vma=False)
    )
    found = jax.device_get(mapped(replay.state, batch))
    norms = jax.tree_util.tree_leaves_with_path(found["gradients"])
    return {
        "inputs": {name: int(count) for name, count in found["inputs"].items()},
        "activations": list(zip(names, map(int, found["activations"]), strict=True)),
        "classification": found["by_image"].classification,
        "localization": found["by_image"].localization,
        "positives": found["by_image"].positives,
        "gradient_norms": {
            jax.tree_util.keystr(path, simple=True, separator="/"): float(
                np.sqrt(np.sum(np.square(g.astype(np.float64))))
            )
            for path, g in norms
        },
        "gradients": bad(found["gradients"]),
        "statistics": bad(found["statistics"]),
    }


def _forward(
    detector: Detector, state: Any, images: jax.Array, names: list[str]
) -> tuple[list[jax.Array], Any]:
    """Counts of elements that are not finite in each layer's output, and the model's outputs."""
    counts: list[jax.Array] = []
    names.clear()

    def look(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = call(*args, **kwargs)
        if context.method_name == "__call__":
            names.append("/".join(context.module.path) or "the detector's output")
            counts.append(sum(map(_count, jax.tree.leaves(output)), jnp.zeros((), jnp.int32)))
        return output

    with nn.intercept_methods(look):
        outputs, _ = detector.forward(state.params, state.batch_stats, images)
    return counts, outputs


def _count(array: jax.Array) -> jax.Array:
    return jnp.sum(~jnp.isfinite(array))


def describe(replay: Replay) -> str:
    """The report, as text."""
    state = {
        "parameters": replay.state.params,
        "BatchNorm statistics": replay.state.batch_stats,
        "optimizer": replay.state.opt_state,
    }
    lines = [f"step {replay.step}: {replay.quantity} was not finite", "before the step:"]
    for name, tree in state.items():
        lines += _group(name, bad(tree))
        largest = max((float(np.max(np.abs(x))) for x in jax.tree.leaves(tree)), default=0.0)
        lines.append(f"    largest magnitude: {largest:.4g}")
    parts, count = replay.batch["labels"].shape[:2]
    for part in range(parts):
        found = examine(replay, part)
        ids = replay.image_ids[part * count : (part + 1) * count]
        microbatch = f", microbatch {part + 1} of {parts}" if parts > 1 else ""
        lines.append(f"the step on {count} images{microbatch}:")
        for name, wrong in found["inputs"].items():
            lines.append(f"  {name}: {f'{wrong} not finite' if wrong else 'finite'}")
        first = next((f"{n} ({c} not finite)" for n, c in found["activations"] if c), None)
        lines.append(f"  first activation that is not finite: {first or 'none'}")
        for name in ("classification", "localization"):
            sums = found[name]
            wrong = [i for i, value in zip(ids, sums, strict=True) if not np.isfinite(value)]
            total = f"sum {np.sum(sums):.6g} over {np.sum(found['positives']):.0f} positives"
            where = f"not finite for {', '.join(wrong)}" if wrong else "finite for every image"
            lines.append(f"  loss, {name}: {total}; {where}")
        norms = sorted(found["gradient_norms"].items(), key=lambda x: (np.isfinite(x[1]), -x[1]))
        lines.append(f"  gradient norms by layer, the {min(SHOWN, len(norms))} largest:")
        lines += [f"    {name}: {norm:.4g}" for name, norm in norms[:SHOWN]]
        lines += _group("gradient", found["gradients"])
        lines += _group("new BatchNorm statistics", found["statistics"])
    return "\n".join(lines)


def _group(name: str, found: dict[str, tuple[int, int]]) -> list[str]:
    if not found:
        return [f"  {name}: finite"]
    lines = [f"    {where}: {wrong} of {size}" for where, (wrong, size) in found.items()]
    more = [f"    and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return [f"  {name}: not finite in {plural(len(lines), 'array')}", *lines[:SHOWN], *more]


def parser(program: str) -> argparse.ArgumentParser:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="the run that diverged")
    parser.add_argument("--step", type=int, help="the saved step (default: the last one)")
    return parser


def main(argv: Sequence[str]) -> None:
    """Parses the command line and reports."""
    options = parser(argv[0]).parse_args(argv[1:])
    print(describe(load_replay(options.workdir, options.step)))


if __name__ == "__main__":
    cli.run(main)
