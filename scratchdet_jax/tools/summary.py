"""Describes the network of a recipe.

scratchdet summary --config=FILE

Prints layers, shapes, parameters and GFLOP, source maps and anchors. Only shapes are computed, so
this is fast for any network. Any field can be overridden, such as --config.model.depth=101.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from absl import flags
from flax import linen as nn

from scratchdet_jax import cli
from scratchdet_jax.detector import Detector, build_detector
from scratchdet_jax.models.layers import Convolution
from scratchdet_jax.models.parts import PARTS, part_of
from scratchdet_jax.models.ssd import backbone_name, feature_shapes
from scratchdet_jax.ops.anchors import anchors_per_cell
from scratchdet_jax.reports.page.tables import text_table


@dataclasses.dataclass
class Layer:
    """A block of the network, or a single layer outside the blocks.

    Attributes:
        kernels: its convolutions in order, such as "3×3/2" (stride) or "3×3 d6" (dilation).
        shapes: height, width and channels (h, w, c) of the output; in the head, of the class and
            the box predictor.
        parameters: their number, in convolutions and norms.
        flop: of its convolutions for one image, forward; a multiply-add counts as two.
    """

    kernels: list[str] = dataclasses.field(default_factory=list)
    shapes: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)
    parameters: int = 0
    flop: int = 0


def layers_of(detector: Detector) -> dict[str, Layer]:
    """Returns the layers by name, in the order of the forward pass, which sees shapes only.

    A name is a place in the parameter tree, such as "stage1/block2" or "conv4_3".
    """
    layers: dict[str, Layer] = collections.defaultdict(Layer)

    def record(
        call: Any, arguments: Any, options: Any, context: nn.module.InterceptorContext
    ) -> Any:
        outputs = call(*arguments, **options)
        module = context.module
        if isinstance(module, Convolution | nn.Conv) and context.method_name == "__call__":
            kernel = module.variables["params"]["kernel"]
            height, width, channels = outputs.shape[1:]
            stride, dilation = getattr(module, "stride", 1), getattr(module, "dilation", 1)
            text = f"{kernel.shape[0]}×{kernel.shape[1]}"
            text += f"/{stride}" * (stride > 1) + f" d{dilation}" * (dilation > 1)
            name = _layer_name(module.path)
            layer = layers[name]
            layer.kernels.append(text)
            kept = layer.shapes if part_of(name.partition("/")[0]) == "head" else []
            layer.shapes = [*kept, (height, width, channels)]
            layer.flop += 2 * kernel.size * height * width
        return outputs

    size = detector.config.image_size
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    with nn.intercept_methods(record):
        variables = jax.eval_shape(
            lambda x: detector.model.init({"params": jax.random.key(0)}, x, train=False), images
        )
    for path, leaf in jax.tree.leaves_with_path(variables["params"]):
        layers[_layer_name([entry.key for entry in path[:-1]])].parameters += leaf.size
    return dict(layers)


def _layer_name(path: Sequence[str]) -> str:
    """Returns the layer of the module at `path`: its block, or the convolution with its norm."""
    if len(path) > 1:
        return "/".join(path[:-1])
    return path[0].removesuffix("_norm").removesuffix("_l2")


def totals(layers: dict[str, Layer]) -> dict[str, tuple[int, int]]:
    """Returns parameters and FLOP by part of the network, and their "total"."""
    found = {}
    for name in (*PARTS, "total"):
        inside = [x for n, x in layers.items() if name in (part_of(n.partition("/")[0]), "total")]
        found[name] = (sum(x.parameters for x in inside), sum(x.flop for x in inside))
    return found


def summarize(config: ml_collections.ConfigDict, classes: int) -> str:
    """Describes the network of a config for a number of classes, as tables."""
    detector = build_detector(config, tuple(f"class {i}" for i in range(1, classes + 1)))
    layers = layers_of(detector)
    rows = [("layer", "convolutions", "output h×w×c", "parameters", "GFLOP")] + [
        (
            name,
            " ".join(layer.kernels) or "norm",
            " + ".join("×".join(map(str, shape)) for shape in layer.shapes) or "–",
            f"{layer.parameters:,}",
            f"{layer.flop / 1e9:.3f}",
        )
        for name, layer in layers.items()
    ]
    parts = [("part", "parameters", "GFLOP")] + [
        (name, f"{parameters:,}", f"{flop / 1e9:.2f}")
        for name, (parameters, flop) in totals(layers).items()
    ]
    maps, anchors = [("map", "h×w×c", "anchors per cell", "anchors")], 0
    shapes = feature_shapes(detector.model, config.image_size)
    cells = anchors_per_cell(config.anchors.aspect_ratios)
    for i, ((height, width, channels), each) in enumerate(zip(shapes, cells, strict=True), 1):
        count = height * width * each
        maps.append((str(i), f"{height}×{width}×{channels}", str(each), f"{count:,}"))
        anchors += count
    norms = {"backbone and extras": config.model.norm, "head": config.model.head_norm}
    places = " and ".join(name for name, norm in norms.items() if norm == "batch") or "none"
    return (
        f"{config.name}: {backbone_name(config.model)} at {config.image_size} px, "
        f"BatchNorm: {places}, {classes} classes\n\n"
        f"{text_table(rows)}\n\n{text_table(parts)}\n\n{text_table(maps)}\n\n"
        f"{anchors:,} anchors. GFLOP: convolutions of one image, forward; a multiply-add counts as "
        "two."
    )


def define_flags() -> flags.FlagValues:
    """Returns the flags besides the config."""
    values = flags.FlagValues()
    flags.DEFINE_integer(
        "classes", 20, "Number of classes, without the background.", 1, flag_values=values
    )
    return values


def main(argv: Sequence[str]) -> None:
    """Parses the command line and prints."""
    values = define_flags()
    config = cli.parse_config(argv, values)
    print(summarize(config, values.classes))


if __name__ == "__main__":
    cli.run(main)
