"""Describes the network of a recipe.

python -m scratchdet_jax.tools.summary --config=FILE

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
from scratchdet_jax.models import backbone_name, feature_shapes
from scratchdet_jax.models.layers import Convolution
from scratchdet_jax.models.parts import PARTS, part_of
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
    kernels: tuple[str, ...]
    shapes: tuple[tuple[int, int, int], ...]
    parameters: int
    flop: int

    @property
    def part(self) -> str:
        """Backbone, extras or head."""
        return part_of(self.name.partition("/")[0])


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


class _Convolution(NamedTuple):
    kernel: str
    shape: tuple[int, int, int]
    flop: int


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
    """The layers in the order of the forward pass, which is evaluated on shapes only."""
    found: dict[str, list[_Convolution]] = {}

    def record(
        call: Any, arguments: Any, options: Any, context: nn.module.InterceptorContext
    ) -> Any:
        outputs = call(*arguments, **options)
        if isinstance(context.module, Convolution | nn.Conv) and context.method_name == "__call__":
            found.setdefault(_layer_of(context.module.scope.path), []).append(
                _convolution(context.module, arguments[0], outputs)
            )
        return outputs

    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    with nn.intercept_methods(record):
        variables = jax.eval_shape(
            lambda x: detector.model.init({"params": jax.random.key(0)}, x, train=False), images
        )
    parameters: dict[str, int] = {}
    for path, leaf in jax.tree.leaves_with_path(variables["params"]):
        name = _layer_of([entry.key for entry in path[:-1]])
        parameters[name] = parameters.get(name, 0) + leaf.size
    names = [*found, *(name for name in parameters if name not in found)]
    return tuple(_layer(name, found.get(name, []), parameters[name]) for name in names)


def _layer_of(path: Sequence[str]) -> str:
    """The layer of the module at `path`: its block, or the convolution with its norm."""
    if len(path) > 1:
        return "/".join(path[:-1])
    return path[0].removesuffix("_norm").removesuffix("_l2")


def _layer(name: str, convolutions: list[_Convolution], parameters: int) -> Layer:
    return Layer(
        name,
        tuple(c.kernel for c in convolutions),
        tuple(dict.fromkeys(c.shape for c in convolutions))
        if part_of(name.partition("/")[0]) == "head"
        else tuple(c.shape for c in convolutions[-1:]),
        parameters,
        sum(c.flop for c in convolutions),
    )


def _convolution(
    module: Convolution | nn.Conv, inputs: jax.Array, outputs: jax.Array
) -> _Convolution:
    if isinstance(module, Convolution):
        height = width = module.kernel
        stride, dilation = module.stride, module.dilation
    else:  # of a backbone that is not ours
        height, width = module.kernel_size
        stride, dilation = (max(_both(x)) for x in (module.strides, module.kernel_dilation))
    kernel = f"{height}×{width}"
    kernel += f"/{stride}" * (stride > 1) + f" d{dilation}" * (dilation > 1)
    shape = tuple(outputs.shape[1:])
    flop = 2 * height * width * inputs.shape[-1] * shape[0] * shape[1] * shape[2]
    return _Convolution(kernel, shape, flop)


def _both(value: int | Sequence[int] | None) -> Sequence[int]:
    return (value or 1,) * 2 if value is None or isinstance(value, int) else value


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
