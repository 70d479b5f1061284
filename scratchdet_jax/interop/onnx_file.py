"""ONNX files, converted by jax2onnx: one image at a time, resizing and NMS included."""

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from scratchdet_jax.errors import UserError

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
    for name in ("jax2onnx", "onnx_ir"):  # of parts without their libraries, values without a type
        logging.getLogger(name).setLevel(logging.ERROR)
    import onnx
    from jax2onnx import to_onnx

    images = jax.ShapeDtypeStruct((1, *canvas, 3), jnp.uint8)
    sizes = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    # Traced first: jax2onnx would replace functions of jax.numpy, and some replacements fail.
    traced = jaxpr_as_fun(jax.make_jaxpr(function)(images, sizes))
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
    for graph in reversed(list(_graphs(model.graph))):  # inner ones first: the outer ones copy them
        _replace_boolean_where(graph)
        _shrink_constants(graph)
    _drop_unused(list(_graphs(model.graph)))
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    onnx.helper.set_model_props(model, texts)
    model.doc_string = metadata["generator"]  # near the beginning, for `files.is_marked`
    onnx.checker.check_model(model)
    return model


def _graphs(graph: Any) -> Iterator[Any]:
    """Yields a graph and the graphs of the loops in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _drop_unused(graphs: Sequence[Any]) -> None:
    """Removes constants that nothing reads, of which onnxruntime warns one by one."""
    used = {name for graph in graphs for node in graph.node for name in node.input}
    used |= {value.name for graph in graphs for value in graph.output}
    for graph in graphs:
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)


def _replace_boolean_where(graph: Any) -> None:
    """Writes Where of booleans as And and Or: onnxruntime has none."""
    from onnx import TensorProto, helper

    values = (*graph.value_info, *graph.input, *graph.output)
    boolean = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.BOOL}

    def replaced() -> Iterator[Any]:
        for node in graph.node:
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
    """Writes large constants that repeat themselves as an Expand, because NMS has huge ones."""
    from onnx import helper, numpy_helper

    kept, nodes = [], []
    for tensor in graph.initializer:
        values = once = numpy_helper.to_array(tensor)
        for axis in range(values.ndim):
            first = once.take([0], axis)
            once = first if (once == first).all() else once
        if values.size < _LARGE or once.size == values.size:
            kept.append(tensor)
            continue
        inputs = [f"{tensor.name}/once", f"{tensor.name}/shape"]
        shape = np.asarray(values.shape, np.int64)
        kept += [numpy_helper.from_array(v, n) for v, n in zip((once, shape), inputs, strict=True)]
        nodes.append(helper.make_node("Expand", inputs, [tensor.name]))
    nodes += graph.node
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)
