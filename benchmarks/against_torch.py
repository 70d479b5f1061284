"""Compares the training step with PyTorch's on this machine's CPU.

python -m benchmarks.against_torch --config=configs/voc300.py --config.batch_size=8

Needs PyTorch (`make torch`). Both sides train the same detector in float32 on the same prepared
images and targets: network, MultiBox loss, gradient and update with momentum; augmentation and
matching are done before. PyTorch works channels last with as many threads as cores. The two take
turns, and each pair of steps gives a ratio of speeds. Prints seconds of wall time and of CPU
time: on a machine that does other work too, the ratio of the CPU times is the steadier one.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from absl import flags

from benchmarks import measure
from scratchdet_jax import cli
from scratchdet_jax.detector import Detector, build_detector
from scratchdet_jax.errors import UserError
from scratchdet_jax.ops.anchors import anchors_per_cell
from scratchdet_jax.ops.matching import Targets
from scratchdet_jax.run.state import TrainState, create_state
from scratchdet_jax.training.optimizer import make_optimizer
from scratchdet_jax.training.step import example_keys

Step = Callable[[], float]  # one update; the loss before it


def define_flags() -> flags.FlagValues:
    """Returns the flags besides the config."""
    values = flags.FlagValues()
    flags.DEFINE_integer(
        "pairs", 5, "Timed pairs of steps; the medians are reported.", flag_values=values
    )
    flags.DEFINE_string("json", None, "Also write the figures to this file.", flag_values=values)
    return values


def main(argv: Sequence[str]) -> None:
    """Parses the command line and measures."""
    values = define_flags()
    config = cli.parse_config(argv, values)
    try:
        from benchmarks import torch_detector
    except ModuleNotFoundError:
        raise UserError("PyTorch is not installed: install it with `make torch`") from None
    _check(config)

    detector = build_detector(config, measure.CLASSES)
    images, targets = _inputs(config, detector)
    start = time.perf_counter()
    ours, parameters = _our_step(config, detector, images, targets)
    compile_seconds = time.perf_counter() - start
    theirs, network = torch_detector.make_step(
        config,
        len(os.sched_getaffinity(0)),
        np.array(images),
        np.array(targets.labels),
        np.array(targets.offsets),
        anchors_per_cell(config.anchors.aspect_ratios),
        len(measure.CLASSES) + 1,
    )
    if parameters != (count := sum(p.numel() for p in network.parameters())):
        raise UserError(f"the networks differ: {parameters:,} parameters, {count:,} in PyTorch")
    ours(), theirs()  # not timed
    times = np.array([(_seconds(ours), _seconds(theirs)) for _ in range(values.pairs)])
    wall, cpu = times[..., 0], times[..., 1]  # [pairs, 2]
    measure.report(
        f"training step against PyTorch, {config.name}, batch {config.batch_size}, float32, CPU",
        [
            ("PyTorch", torch_detector.VERSION),
            ("threads of PyTorch", torch_detector.threads()),
            ("compilation, s", compile_seconds),
            ("images/s", float(config.batch_size / np.median(wall[:, 0]))),
            ("images/s, PyTorch", float(config.batch_size / np.median(wall[:, 1]))),
            ("speed / PyTorch's, median of pairs", float(np.median(wall[:, 1] / wall[:, 0]))),
            ("the same of each pair", ", ".join(f"{x:.2f}" for x in wall[:, 1] / wall[:, 0])),
            ("CPU s per image", float(np.median(cpu[:, 0]) / config.batch_size)),
            ("CPU s per image, PyTorch", float(np.median(cpu[:, 1]) / config.batch_size)),
            ("the ratio of CPU times", float(np.median(cpu[:, 1] / cpu[:, 0]))),
        ],
        values.json,
    )


def _check(config: ml_collections.ConfigDict) -> None:
    """Raises UserError unless `torch_detector` can build the detector of the config."""
    if jax.default_backend() != "cpu":
        raise UserError("this benchmark compares CPUs: set JAX_PLATFORMS=cpu")
    model = config.model
    built = {
        "backbone": "resnet",
        "stem": "root",
        "stem_stride": 1,
        "width": 1.0,
        "preactivation": False,
        "norm": "batch",
        "head_norm": "batch",
        "last_convolutions": False,
        "dtype": "float32",
    }
    for field, value in built.items():
        if model[field] != value:
            raise UserError(f"config.model.{field} is {model[field]!r}: compared is only {value!r}")
    if model.depth not in (18, 34):
        raise UserError(f"config.model.depth is {model.depth}: compared are only 18 and 34")


def _inputs(config: ml_collections.ConfigDict, detector: Detector) -> tuple[jax.Array, Targets]:
    """Makes augmented, normalised images and their targets."""
    batch = measure.synthetic_batch(config, config.batch_size)
    keys = example_keys(config.seed, 0, jnp.arange(config.batch_size))
    return jax.jit(detector.inputs)(batch, keys)


def _our_step(
    config: ml_collections.ConfigDict, detector: Detector, images: jax.Array, targets: Targets
) -> tuple[Step, int]:
    """Compiles the step, which returns the loss before its update; counts the parameters."""
    optimizer = make_optimizer(config)
    state = create_state(detector.model, optimizer, config.image_size, config.seed)

    def update(
        state: TrainState, images: jax.Array, targets: Targets
    ) -> tuple[TrainState, jax.Array]:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            sums, batch_stats = detector.loss(params, state.batch_stats, images, targets)
            return sums.total / jnp.maximum(sums.positives, 1.0), batch_stats

        (value, batch_stats), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.replace(params=params, batch_stats=batch_stats, opt_state=opt_state), value

    compiled = jax.jit(update, donate_argnums=0).lower(state, images, targets).compile()

    def step() -> float:
        nonlocal state
        state, value = compiled(state, images, targets)
        return float(value)

    return step, sum(x.size for x in jax.tree.leaves(state.params))


def _seconds(step: Step) -> tuple[float, float]:
    """Times one step, in seconds: wall time, and CPU time of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    cli.run(main)
