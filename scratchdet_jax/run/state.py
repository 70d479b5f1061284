"""The state that training carries from step to step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct


class TrainState(struct.PyTreeNode):
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

    @property
    def result(self) -> dict[str, Any]:
        """The variables that are evaluated."""
        return self.variables

    def starting_from(self, variables: dict[str, Any]) -> "TrainState":
        """Returns the same state with other variables."""
        return self.replace(**variables)


class AveragedState(TrainState):
    """The state of a run with `config.ema_decay`; other runs keep the tree of TrainState.

    Attributes:
        average: exponential moving average of `variables`, the statistics included, as timm and
            torchvision (use_buffers=True) average them: the averaged parameters need statistics
            of their own.
    """

    average: Any

    @property
    def result(self) -> dict[str, Any]:
        """The variables that are evaluated."""
        return self.average

    def starting_from(self, variables: dict[str, Any]) -> "AveragedState":
        """Returns the same state with other variables, each copy in memory of its own."""
        return self.replace(**variables, average=jax.tree.map(jnp.copy, variables))


def update_average(state: TrainState, decay: float) -> TrainState:
    """Moves the average of a state towards its variables, after update `state.step` (from 1).

    The decay is min(decay, (1 + step) / (10 + step)), as in TensorFlow and timm, so the random
    initial weights are soon forgotten. A state without average is returned unchanged.
    """
    if not isinstance(state, AveragedState):
        return state
    step = state.step.astype(jnp.float32)
    share = 1.0 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    average = jax.tree.map(lambda a, x: a + share * (x - a), state.average, state.variables)
    return state.replace(average=average)


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_size: int,
    seed: int,
    averaged: bool = False,
) -> TrainState:
    """Initialises weights at random, by `seed` alone; makes an AveragedState if `averaged`."""
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    # One program for all arrays would take longer to compile than those of the initialisers.
    variables = model.lazy_init({"params": jax.random.key(seed)}, images, train=False)
    params = variables["params"]
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
    )
    if not averaged:
        return state
    return AveragedState(**vars(state), average=jax.tree.map(jnp.copy, state.variables))


FINITE = "finite_"  # metrics with this prefix are 1 if all values of an array are finite, else 0
