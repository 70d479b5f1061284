"""The compiled programs of a config, from shapes alone: what training and evaluation run.

Nothing is executed, so the devices of the mapping need not exist (forecast/chips.py).
"""

import math
import re
from collections import Counter
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import optax
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params

from scratchdet_jax.config.validation import validate
from scratchdet_jax.detector import Detector, build_detector
from scratchdet_jax.evaluation.evaluator import map_eval_steps
from scratchdet_jax.models.layers import packs
from scratchdet_jax.models.parts import part_of
from scratchdet_jax.parallel.devices import AXIS, DeviceMapping
from scratchdet_jax.run.state import create_state
from scratchdet_jax.training.optimizer import make_optimizer
from scratchdet_jax.training.step import make_train_step


class Program(NamedTuple):
    """A mapped function and the shapes of its arguments."""

    function: Any
    arguments: tuple[Any, Any]

    def compile(self, **options: Any) -> jax.stages.Compiled:
        """Compiles it with the compiler's `options`."""
        return self.function.lower(*self.arguments).compile(compiler_options=options)

    def flop(self) -> Counter[str]:
        """Counts the FLOP on each device, by scope; see `count_flop`."""
        return count_flop(jax.make_jaxpr(self.function)(*self.arguments).jaxpr)


def training_program(
    config: ml_collections.ConfigDict, classes: int, mapping: DeviceMapping
) -> Program:
    """Returns the training step `(state, batch) → (state, metrics)`.

    Raises:
        UserError: the config cannot run on these devices.
    """
    detector, optimizer, state = _setting(config, classes, mapping)
    step = make_train_step(detector, optimizer, mapping.platform)
    rows = (config.accumulate_steps, config.batch_size // config.accumulate_steps)
    slots = config.data.max_boxes
    batch = {
        **_images(config, rows),
        "boxes": jax.ShapeDtypeStruct((*rows, slots, 4), np.float32),
        "labels": jax.ShapeDtypeStruct((*rows, slots), np.int32),
        "ignore": jax.ShapeDtypeStruct((*rows, slots), np.bool_),
    }
    return Program(mapping.map_train_step(step), (state, mapping.batch_shapes(batch)))


def evaluation_programs(
    config: ml_collections.ConfigDict, classes: int, mapping: DeviceMapping
) -> list[Program]:
    """Returns the functions `(variables, batch) → Detections` of an evaluation, one per scale.

    Takes the arguments of `training_program`.
    """
    detector, _, state = _setting(config, classes, mapping)
    images = mapping.whole_batch(config.eval.batch_size)
    batch = mapping.batch_shapes(_images(config, (1, images)))
    return [Program(step, (state.variables, batch)) for step in map_eval_steps(detector, mapping)]


def _setting(
    config: ml_collections.ConfigDict, classes: int, mapping: DeviceMapping
) -> tuple[Detector, optax.GradientTransformation, Any]:
    """Returns the detector, with the layout of maps on these devices, optimizer, and state."""
    packed = packs(config.model.layout, mapping.platform)
    config = config.copy_and_resolve_references()
    config.model.layout = "packed" if packed else "plain"
    config.lock()
    validate(config, mapping.mesh.size)
    names = tuple(f"class {i}" for i in range(1, classes + 1))
    detector, optimizer = build_detector(config, names, AXIS), make_optimizer(config)
    state = mapping.shapes(
        lambda: create_state(detector.model, optimizer, config.image_size, config.seed)
    )
    return detector, optimizer, state


def _images(
    config: ml_collections.ConfigDict, rows: tuple[int, int]
) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        "image": jax.ShapeDtypeStruct((*rows, *config.data.canvas, 3), np.uint8),
        "size": jax.ShapeDtypeStruct((*rows, 2), np.int32),
    }


def count_flop(jaxpr: Jaxpr, scope: str = "") -> Counter[str]:
    """Counts the FLOP of the convolutions and matrix products of a program, by scope.

    A multiply-add counts as two. The zeros with which the gradient of a strided convolution is
    dilated do not count; the zeros of its padding do. The body of a loop of unknown length counts
    once.
    """
    total: Counter[str] = Counter()
    for equation in jaxpr.eqns:
        inner = "/".join(filter(None, (scope, str(equation.source_info.name_stack))))
        rounds = equation.params["length"] if equation.primitive.name == "scan" else 1
        total[f"{inner}/{equation.primitive.name}"] += _flop(equation)
        for part in jaxprs_in_params(equation.params):
            found = count_flop(part, inner)
            total.update({name: rounds * count for name, count in found.items()})
    return +total


def _flop(equation: JaxprEqn) -> int:
    if equation.primitive.name not in ("conv_general_dilated", "dot_general"):
        return 0
    result: Any = equation.outvars[0].aval
    operands: list[Any] = [x.aval for x in equation.invars]
    outputs = result.size
    left, right = (x.shape for x in operands)
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2 * outputs * math.prod(left[i] for i in contracted)
    _, channels, *sides = equation.params["dimension_numbers"].rhs_spec
    multiplied = right[channels] * math.prod(right[i] for i in sides)
    return 2 * outputs * multiplied // math.prod(equation.params["lhs_dilation"])


def place(scope: str) -> tuple[str, bool]:
    """Returns the part of a program that a scope is in, and whether it is of the backward pass.

    The parts are "inputs", "loss", "update", "detections", the parts of the network by the names of
    its modules ("root", "stage1", …, "conv4" for conv4_1 to conv4_3, "extras", "head"), and "rest".
    """
    backward = "transpose(" in scope
    names = [re.sub(r"^(?:\w+\()*|\)+$", "", name) for name in scope.split("/")]
    for name in ("inputs", "loss", "update", "detections", "head"):
        if name in names:
            return name, backward
    names = [name for name in names if not name.startswith("trunk.")]  # its methods
    if "trunk" not in names[:-2]:  # neither module nor operation follows
        return "rest", backward
    module = names[names.index("trunk") + 1]
    return part_of(module) if module.startswith("extra") else module.partition("_")[0], backward
