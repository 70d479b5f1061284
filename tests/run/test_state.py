"""The state of a new run: its initial values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scratchdet_jax.detector import build_detector
from scratchdet_jax.run.state import create_state
from scratchdet_jax.training.optimizer import make_optimizer
from tests.plain import FIELDS, plain_backbone
from tests.tiny import tiny_config


@pytest.mark.parametrize(
    ("initializer", "head_norm"), [("kaiming", "batch"), ("caffe", "none"), ("caffe", "batch")]
)
def test_initial_values_are_those_of_one_compiled_program(initializer, head_norm):
    fields = {"model.initializer": initializer, "model.head_norm": head_norm}
    config = tiny_config(**FIELDS, **fields)
    with plain_backbone():
        model = build_detector(config, ("cat",)).model
        state = create_state(model, make_optimizer(config), config.image_size, 3, averaged=True)
        images = jnp.zeros((1, config.image_size, config.image_size, 3))
        expected = jax.jit(lambda: model.init({"params": jax.random.key(3)}, images, train=False))()
    assert jax.tree.structure(state.variables) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, state.variables, expected)
    jax.tree.map(np.testing.assert_array_equal, state.average, expected)
    kernels = [x for x in jax.tree.leaves(expected["params"]) if x.ndim == 4]
    assert kernels and all(np.std(kernel) > 0 for kernel in kernels)
