"""The state that training carries from step to step."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn


@flax.struct.dataclass
class TrainState:
    """The arrays of a checkpoint; one replicated copy without a device axis.

    Attributes:
        step: int32 scalar, the number of updates made.
        params: float32 parameters.
        batch_stats: float32 running statistics of BatchNorm (empty without BatchNorm).
        opt_state: the optimiser's state.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any

    @property
    def variables(self) -> dict[str, Any]:
        """The variables for `model.apply`."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def create_state(
    model: nn.Module, optimizer: optax.GradientTransformation, image_size: int, seed: int
) -> TrainState:
    """Randomly initialised weights, a function of `seed` alone."""

    def init() -> TrainState:
        images = jnp.zeros((1, image_size, image_size, 3), jnp.float32)
        variables = model.init({"params": jax.random.key(seed)}, images, train=False)
        params = variables["params"]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            opt_state=optimizer.init(params),
        )

    return jax.jit(init)()


FINITE = "finite_"  # metrics with this prefix are 1 if all values of an array are finite, else 0
