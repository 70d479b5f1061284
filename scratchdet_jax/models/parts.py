"""The parts of a detector by the names of its parameters, and parts that are not trained."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from flax import traverse_util

from scratchdet_jax.models.normalization import BatchNorm

PARTS = ("backbone", "extras", "head")
KINDS = ("biases", "norms", "head_norms")  # that `config.optimizer.no_decay` may name


def part_of(name: str) -> str:
    """Returns the part of the detector (one of PARTS) that a top-level parameter name is in."""
    if name == "head":
        return "head"
    return "extras" if name.startswith("extra") else "backbone"


def split_names(text: str) -> tuple[str, ...]:
    """Returns the names in a field that joins them by commas, such as stage1 or head/level1."""
    names = (name.strip().strip("/") for name in text.split(","))
    return tuple(name for name in names if name)


def is_frozen(path: Sequence[str], names: Sequence[str]) -> bool:
    """Returns whether a module or parameter, such as ("stage1", "block1"), is in one of `names`.

    A name covers whole components of a path: stage1 does not cover stage10.
    """
    text = "/".join(path) + "/"
    return part_of(path[0]) in names or any(text.startswith(f"{name}/") for name in names)


def frozen_mask(params: Any, names: Sequence[str]) -> Any:
    """Returns whether each array of a parameter tree is frozen: the tree with bools."""
    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({path: is_frozen(path, names) for path in flat})


def stop_frozen(params: Any, names: Sequence[str]) -> Any:
    """Returns the same parameters; no gradient reaches the frozen ones, nor is it computed."""
    if not names:
        return params
    stop = lambda x, frozen: jax.lax.stop_gradient(x) if frozen else x  # noqa: E731
    return jax.tree.map(stop, params, frozen_mask(params, names))


def frozen_norms(names: Sequence[str]) -> Any:
    """Returns a context in which frozen BatchNorms use their running statistics and keep them."""

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if isinstance(module, BatchNorm) and is_frozen(module.path, names):
            x, _, *following = args  # the ReLU and the pooling after the norm
            return call(x, False, *following)
        return call(*args, **kwargs)

    return nn.intercept_methods(intercept)


def kinds(params: Any) -> Any:
    """Returns the KINDS of each array of a parameter tree: the tree with tuples of names.

    "biases" are those of convolutions; "norms" the scales and biases of BatchNorm and L2-Norm.
    """
    flat = traverse_util.flatten_dict(params)

    def of(path: tuple[str, ...]) -> tuple[str, ...]:
        if path[-1] == "kernel":
            return ()
        if (*path[:-1], "kernel") in flat:
            return ("biases",)
        return ("norms", "head_norms") if part_of(path[0]) == "head" else ("norms",)

    return traverse_util.unflatten_dict({path: of(path) for path in flat})
