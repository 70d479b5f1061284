"""Repeats a diverged training step and reports what is not finite.

scratchdet replay --workdir=runs/voc300 [--step=1234]
"""

import argparse
import itertools
import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax.sharding import PartitionSpec as P

from scratchdet_jax import cli
from scratchdet_jax.detector import Detector, build_detector
from scratchdet_jax.errors import UserError, plural
from scratchdet_jax.ops.losses import multibox_sums
from scratchdet_jax.parallel.devices import AXIS, DeviceMapping
from scratchdet_jax.paths import user_path
from scratchdet_jax.run.checkpoints import RunInfo
from scratchdet_jax.run.replay import FOLDER
from scratchdet_jax.run.state import TrainState
from scratchdet_jax.training.step import example_keys

SHOWN = 12  # most arrays of a group


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
    step = max(files, default=0) if step is None else step
    if step not in files:
        known = ", ".join(map(str, sorted(files))) or "none, because no training diverged there"
        raise UserError(f"{workdir / FOLDER} has no step {step}; it has {known}")
    try:
        with files[step].open("rb") as stored, np.load(stored, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(str(arrays.pop("about")))
        info = RunInfo.from_json(about)
        tree = traverse_util.unflatten_dict(arrays, sep="/")
        kept = tree["state"]
        statistics = kept.get("batch_stats", {})
        state = TrainState(kept["step"], kept["params"], statistics, opt_state={})
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"{files[step]} cannot be read ({error}): it is damaged") from None
    return Replay(step, about["quantity"], info, tuple(about["image_ids"]), tree["batch"], state)


def examine(replay: Replay, part: int) -> dict[str, Any]:
    """Repeats one microbatch of the step on one device.

    Returns:
        "inputs": numbers that are not finite in augmented images and targets, by name;
        "activations": the same by layer, in the order of the forward pass;
        "sums": the loss's sums per image, [B];
        "gradients" and "new BatchNorm statistics": the arrays themselves.
    """
    config = replay.info.config
    detector = build_detector(config, replay.info.class_names, AXIS)
    batch = {key: value[part] for key, value in replay.batch.items()}

    def step(state: Any, batch: Any) -> dict[str, Any]:
        count = batch["labels"].shape[0]
        keys = example_keys(config.seed, state.step, part * count + jnp.arange(count))
        images, targets = detector.inputs(batch, keys)
        activations, (logits, offsets) = _forward(detector, state, images)

        def loss_of_one(*image: jax.Array) -> Any:
            logits, offsets, labels, wanted = (x[None] for x in image)
            return multibox_sums(logits, offsets, labels, wanted, config.loss.negative_ratio)

        def loss(params: Any) -> tuple[jax.Array, Any]:
            sums, updated = detector.loss(params, state.batch_stats, images, targets)
            return sums.total, updated

        gradients, statistics = jax.grad(loss, has_aux=True)(state.params)
        return {
            "inputs": {"images": _count(images), "target offsets": _count(targets.offsets)},
            "activations": activations,
            "sums": jax.vmap(loss_of_one)(logits, offsets, targets.labels, targets.offsets),
            "gradients": gradients,
            "new BatchNorm statistics": statistics,
        }

    mesh = DeviceMapping("shard_map", jax.devices()[:1]).mesh
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(P(), P()), out_specs=P(), check_vma=False)
    found: dict[str, Any] = jax.device_get(jax.jit(mapped)(replay.state, batch))
    return found


def _forward(
    detector: Detector, state: Any, images: jax.Array
) -> tuple[OrderedDict[str, jax.Array], Any]:
    """Counts what is not finite in each layer's output, by name; returns the model's outputs."""
    counts: OrderedDict[str, jax.Array] = OrderedDict()

    def look(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = call(*args, **kwargs)
        if context.method_name == "__call__":
            name = "/".join(context.module.path) or "the detector's output"
            counts[name] = sum(map(_count, jax.tree.leaves(output)), counts.get(name, jnp.int32(0)))
        return output

    with nn.intercept_methods(look):
        outputs, _ = detector.forward(state.params, state.batch_stats, images)
    return counts, outputs


def _count(array: jax.Array) -> jax.Array:
    return jnp.sum(~jnp.isfinite(array))


def describe(replay: Replay) -> str:
    """Writes the report."""
    lines = [f"step {replay.step}: {replay.quantity} was not finite", "before the step:"]
    lines += _group("parameters", replay.state.params)
    lines += _group("BatchNorm statistics", replay.state.batch_stats)
    lines += _group("optimizer", replay.state.opt_state)
    parts, count = replay.batch["labels"].shape[:2]
    for part in range(parts):
        found = examine(replay, part)
        ids = replay.image_ids[part * count : (part + 1) * count]
        microbatch = f", microbatch {part + 1} of {parts}" if parts > 1 else ""
        lines.append(f"the step on {count} images{microbatch}:")
        for name, wrong in found["inputs"].items():
            lines.append(f"  {name}: {f'{wrong} not finite' if wrong else 'finite'}")
        layers = (f"{name} ({wrong} not finite)" for name, wrong in found["activations"].items())
        first = next(itertools.compress(layers, found["activations"].values()), "none")
        lines.append(f"  first activation that is not finite: {first}")
        positives = np.sum(found["sums"].positives)
        for name in ("classification", "localization"):
            sums = getattr(found["sums"], name)
            images = list(itertools.compress(ids, ~np.isfinite(sums)))
            where = f"not finite for {', '.join(images)}" if images else "finite for every image"
            total = f"sum {np.sum(sums):.6g} over {positives:.0f} positives"
            lines.append(f"  loss, {name}: {total}; {where}")
        for name in ("gradients", "new BatchNorm statistics"):
            lines += _group(name, found[name])
    return "\n".join(lines)


def _group(name: str, tree: Any) -> list[str]:
    """Returns lines that name the arrays of a tree with numbers that are not finite."""
    found = []
    for path, leaf in jax.tree.leaves_with_path(tree):
        array = np.asarray(leaf)
        if wrong := np.sum(~np.isfinite(array)):
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            found.append(f"    {where}: {wrong} of {array.size}")
    if not found:
        return [f"  {name}: finite"]
    more = [f"    and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return [f"  {name}: not finite in {plural(len(found), 'array')}", *found[:SHOWN], *more]


def parser(program: str) -> argparse.ArgumentParser:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=user_path, required=True, help="the run that diverged")
    parser.add_argument("--step", type=int, help="the saved step (default: the last one)")
    return parser


def main(argv: Sequence[str]) -> None:
    """Parses the command line and reports."""
    options = parser(argv[0]).parse_args(argv[1:])
    print(describe(load_replay(options.workdir, options.step)))


if __name__ == "__main__":
    cli.run(main)
