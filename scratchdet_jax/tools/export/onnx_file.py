"""ONNX files, converted by jax2onnx: one image at a time, resizing and NMS included."""

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from scratchdet_jax.errors import UserError
from scratchdet_jax.files import write_atomically

INPUTS, OUTPUTS = ("images", "sizes"), ("boxes", "scores", "labels")
_LARGE = 1024  # values


def check_installed() -> None:
    """Raises UserError unless the converter is installed."""
    for name in ("jax2onnx", "onnx"):
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"--format=onnx needs {name}: pip install --no-deps -r requirements-onnx.txt"
            )


def convert(function: Any, canvas: tuple[int, int], metadata: Mapping[str, Any]) -> Any:
    """Converts a detector to an ONNX model.

    The batch is 1: jax2onnx 0.17 converts the network with a symbolic batch, but not the resizing
    (`rem`).

    Args:
        function: (images uint8 [1, H, W, 3], sizes int32 [1, 2]) → boxes, scores, labels.
        canvas: H and W.
        metadata: JSON values by name; what is not a string becomes JSON.

    Returns:
        onnx.ModelProto.
    """
    import onnx
    from jax2onnx import to_onnx

    images = jax.ShapeDtypeStruct((1, *canvas, 3), jnp.uint8)
    sizes = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    # Traced first: jax2onnx would replace functions of jax.numpy, and some replacements fail.
    traced = jaxpr_as_fun(jax.make_jaxpr(function)(images, sizes))
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # warns of values without a type
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Explicitly requested dtype float64", UserWarning)
        model = to_onnx(
            jax.jit(lambda images, sizes: tuple(traced(images, sizes))),
            [images, sizes],
            model_name="scratchdet",
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
        )
    model = onnx.shape_inference.infer_shapes(model)
    _replace_boolean_where(model.graph)
    _shrink_constants(model.graph)
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    onnx.helper.set_model_props(model, texts)
    onnx.checker.check_model(model)
    return model


def write(path: Path, model: Any) -> None:
    """Writes a model of `convert`."""
    write_atomically(path, lambda file: file.write(model.SerializeToString()))


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of an ONNX file; empty if it is none."""
    import onnx

    try:
        return {prop.key: prop.value for prop in onnx.load(path).metadata_props}
    except Exception:  # whatever protobuf raises for another file
        return {}


def _replace_boolean_where(graph: Any) -> None:
    """Writes Where of booleans as And and Or, in loops too: onnxruntime has none."""
    from onnx import TensorProto, helper

    values = (*graph.value_info, *graph.input, *graph.output)
    boolean = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.BOOL}

    def replaced() -> Iterator[Any]:
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    _replace_boolean_where(attribute.g)
            if node.op_type != "Where" or not boolean & {*node.input[1:], *node.output}:
                yield node
                continue
            (condition, true, false), (out,) = node.input, node.output
            yield helper.make_node("And", [condition, true], [f"{out}/true"])
            yield helper.make_node("Not", [condition], [f"{out}/not"])
            yield helper.make_node("And", [f"{out}/not", false], [f"{out}/false"])
            yield helper.make_node("Or", [f"{out}/true", f"{out}/false"], [out])

    nodes = list(replaced())
    del graph.node[:]
    graph.node.extend(nodes)


def _shrink_constants(graph: Any) -> None:
    """Writes large constants of one value as this value: NMS has more of them than weights."""
    from onnx import helper, numpy_helper

    kept, nodes = [], []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.size < _LARGE or (values != values.flat[0]).any():
            kept.append(tensor)
            continue
        shape = np.asarray(values.shape, np.int64)
        kept.append(numpy_helper.from_array(shape, f"{tensor.name}/shape"))
        value = numpy_helper.from_array(values.reshape(-1)[:1])
        inputs = [f"{tensor.name}/shape"]
        nodes.append(helper.make_node("ConstantOfShape", inputs, [tensor.name], value=value))
    nodes += graph.node
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)
