"""Describes the network of a recipe.

scratchdet summary --config=FILE

Prints layers, shapes, parameters and GFLOP, source maps and anchors. Only shapes are computed, so
this is fast for any network. Any field can be overridden, such as --config.model.depth=101.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from absl import flags
from flax import linen as nn

from scratchdet_jax import cli
from scratchdet_jax.detector import Detector, build_detector
from scratchdet_jax.errors import UserError
from scratchdet_jax.models.layers import Convolution
from scratchdet_jax.models.parts import PARTS, part_of
from scratchdet_jax.models.ssd import backbone_name, feature_shapes
from scratchdet_jax.ops.anchors import anchors_per_cell


class Layer(NamedTuple):
    """A block of the network, or a single layer outside the blocks.

    Attributes:
        name: its place in the parameter tree, such as "stage1/block2" or "conv4_3".
        kernels: its convolutions in order, such as "3×3/2" (stride) or "3×3 d6" (dilation).
        shapes: height, width and channels [h, w, c] of the output; in the head, of the class and
            the box predictor.
        parameters: of its convolutions and norms.
        flop: of its convolutions for one image, forward; a multiply-add counts as two.
    """

    name: str
    kernels: tuple[str, ...] = ()
    shapes: tuple[tuple[int, int, int], ...] = ()
    parameters: int = 0
    flop: int = 0

    @property
    def part(self) -> str:
        """Backbone, extras or head."""
        return part_of(self.name.partition("/")[0])

    def with_convolution(self, module: nn.Module, shape: tuple[int, int, int]) -> "Layer":
        """Adds a convolution that has just run, and the shape of its output."""
        kernel = module.variables["params"]["kernel"]
        stride, dilation = getattr(module, "stride", 1), getattr(module, "dilation", 1)
        text = f"{kernel.shape[0]}×{kernel.shape[1]}"
        text += f"/{stride}" * (stride > 1) + f" d{dilation}" * (dilation > 1)
        return self._replace(
            kernels=(*self.kernels, text),
            shapes=(*self.shapes, shape) if self.part == "head" else (shape,),
            flop=self.flop + 2 * kernel.size * shape[0] * shape[1],
        )


class SourceMap(NamedTuple):
    """A feature map that the head reads."""

    height: int
    width: int
    channels: int
    anchors_per_cell: int

    @property
    def anchors(self) -> int:
        """Anchors on the whole map."""
        return self.height * self.width * self.anchors_per_cell


class Summary(NamedTuple):
    """The figures of a network."""

    title: str
    layers: tuple[Layer, ...]
    maps: tuple[SourceMap, ...]

    def part(self, name: str) -> tuple[int, int]:
        """Parameters and FLOP of a part."""
        layers = [layer for layer in self.layers if layer.part == name]
        return sum(x.parameters for x in layers), sum(x.flop for x in layers)


def summarize(config: ml_collections.ConfigDict, classes: int) -> Summary:
    """Describes the network of a config for a number of classes."""
    names = tuple(f"class {i}" for i in range(1, classes + 1))
    detector = build_detector(config, names)
    shapes = feature_shapes(detector.model, config.image_size)
    cells = anchors_per_cell(config.anchors.aspect_ratios)
    maps = tuple(SourceMap(*shape, a) for shape, a in zip(shapes, cells, strict=True))
    title = (
        f"{config.name}: {backbone_name(config.model)} at {config.image_size} px, "
        f"BatchNorm: {_norms(config.model)}, {classes} classes"
    )
    return Summary(title, _layers(detector, config.image_size), maps)


def _norms(config: Any) -> str:
    places = {"backbone and extras": config.norm, "head": config.head_norm}
    return " and ".join(name for name, norm in places.items() if norm == "batch") or "none"


def _layers(detector: Detector, image_size: int) -> tuple[Layer, ...]:
    """Returns the layers in the order of the forward pass, which is evaluated on shapes only."""
    layers: dict[str, Layer] = {}

    def record(
        call: Any, arguments: Any, options: Any, context: nn.module.InterceptorContext
    ) -> Any:
        outputs = call(*arguments, **options)
        module = context.module
        if isinstance(module, Convolution | nn.Conv) and context.method_name == "__call__":
            name = _layer_of(module.path)
            layer = layers.get(name, Layer(name))
            layers[name] = layer.with_convolution(module, tuple(outputs.shape[1:]))
        return outputs

    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    with nn.intercept_methods(record):
        variables = jax.eval_shape(
            lambda x: detector.model.init({"params": jax.random.key(0)}, x, train=False), images
        )
    for path, leaf in jax.tree.leaves_with_path(variables["params"]):
        name = _layer_of([entry.key for entry in path[:-1]])
        layer = layers.get(name, Layer(name))
        layers[name] = layer._replace(parameters=layer.parameters + leaf.size)
    return tuple(layers.values())


def _layer_of(path: Sequence[str]) -> str:
    """Returns the layer of the module at `path`: its block, or the convolution with its norm."""
    if len(path) > 1:
        return "/".join(path[:-1])
    return path[0].removesuffix("_norm").removesuffix("_l2")


def to_text(summary: Summary) -> str:
    """The summary as aligned tables."""
    layers = [
        (
            layer.name,
            " ".join(layer.kernels) or "norm",
            " + ".join("×".join(map(str, shape)) for shape in layer.shapes) or "–",
            f"{layer.parameters:,}",
            f"{layer.flop / 1e9:.3f}",
        )
        for layer in summary.layers
    ]
    parts = [(name, *summary.part(name)) for name in PARTS]
    parts.append(("total", sum(p for _, p, _ in parts), sum(f for _, _, f in parts)))
    part_rows = [(name, f"{count:,}", f"{flop / 1e9:.2f}") for name, count, flop in parts]
    maps = [
        (str(i), f"{m.height}×{m.width}×{m.channels}", str(m.anchors_per_cell), f"{m.anchors:,}")
        for i, m in enumerate(summary.maps, 1)
    ]
    anchors = sum(m.anchors for m in summary.maps)
    return "\n\n".join(
        (
            summary.title,
            _table(("layer", "convolutions", "output h×w×c", "parameters", "GFLOP"), layers, 3),
            _table(("part", "parameters", "GFLOP"), part_rows, 1),
            _table(("map", "h×w×c", "anchors per cell", "anchors"), maps, 1),
            f"{anchors:,} anchors. GFLOP: convolutions of one image, forward; a multiply-add "
            "counts as two.",
        )
    )


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int) -> str:
    """A table: the first columns are aligned to the left, the others to the right."""
    rows = [titles, *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(titles))]
    lines = (
        "  ".join(
            cell.ljust(width) if i < text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
    return "\n".join(lines)


def define_flags() -> flags.FlagValues:
    """The flags besides the config."""
    values = flags.FlagValues()
    flags.DEFINE_integer(
        "classes", 20, "Number of classes, without the background.", flag_values=values
    )
    return values


def main(argv: Sequence[str]) -> None:
    """Parses the command line and prints."""
    values = define_flags()
    config = cli.parse_config(argv, values)
    if values.classes < 1:
        raise UserError(f"--classes is {values.classes}: it must be at least 1")
    print(to_text(summarize(config, values.classes)))


if __name__ == "__main__":
    cli.run(main)
