"""Shapes of a detector's variables and source maps; nothing is computed."""

import jax
import jax.numpy as jnp


def _images(size):
    return jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)


def abstract_variables(model, size=300):
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), _images(size))


def count(tree):
    """Number of parameters in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
