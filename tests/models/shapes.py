"""Shapes of a detector's variables and source maps; nothing is computed."""

import jax
import jax.numpy as jnp

from scratchdet_jax.models import ssd

_shapes_of_maps = {}
_trace = ssd.feature_shapes


def _images(size):
    return jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)


def abstract_variables(model, size=300):
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), _images(size))


def count(tree):
    """Number of parameters in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def feature_shapes(model, image_size):
    """The package's function, but every trunk is traced once at each size."""
    key = repr(model.trunk), image_size
    if key not in _shapes_of_maps:
        _shapes_of_maps[key] = _trace(model, image_size)
    return _shapes_of_maps[key]
