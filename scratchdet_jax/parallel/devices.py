"""Maps the one-replica functions of the training step and the evaluator over all devices.

There are two equivalent ways, `jax.pmap` and `jax.jit(jax.shard_map)`. In both, the state is one
replicated global array without a device axis, and the batch is split along its examples.
`check_vma=False` makes gradients mean the same as with pmap (the psum in the step is the only
reduction) and allows BatchNorm's grouped means.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "batch"  # the mapped axis: the replicas of a step


class DeviceMapping:
    """The devices of a run, and how functions and arrays are distributed over them."""

    def __init__(self, kind: str, devices: Sequence[jax.Device] | None = None) -> None:
        """Takes `config.parallel`, "shard_map" or "pmap", and `devices`: all by default."""
        self.kind = kind
        if devices is None:  # grouped by process: each feeds consecutive rows
            devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
        self.mesh = Mesh(np.asarray(devices), (AXIS,))

    @property
    def replicated(self) -> NamedSharding:
        """Returns the sharding of the state: one copy per device."""
        return NamedSharding(self.mesh, P())

    def replicate(self, tree: Any) -> Any:
        """Puts a copy of every array on each device; all processes must have equal values."""
        if jax.process_count() == 1:
            return jax.device_put(tree, self.replicated)
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(
                self.replicated, np.asarray(x), np.shape(x)
            ),
            tree,
        )

    def shapes(self, make: Callable[[], Any]) -> Any:
        """Returns shapes, types and sharding of `replicate(make())`, without computing."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.replicated),
            jax.eval_shape(make),
        )

    @property
    def platform(self) -> str:
        """Returns what the devices are: "cpu", "gpu" or "tpu"."""
        return self.mesh.devices.flat[0].platform

    def whole_batch(self, images: int) -> int:
        """Returns the least batch of at least `images` that divides among the devices."""
        return -(-images // self.mesh.size) * self.mesh.size

    def map_train_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Maps `(state, batch) → (state, metrics)`; the state's buffers are donated."""
        if self.kind == "pmap":
            devices = list(self.mesh.devices)
            mapped = jax.pmap(
                step, AXIS, in_axes=(None, 1), out_axes=None, devices=devices, donate_argnums=0
            )
            if jax.process_count() == 1:
                return mapped

            def with_global_state(state: Any, batch: Any) -> Any:
                state, metrics = mapped(state, batch)
                return jax.tree.map(self._joined, state), metrics

            return with_global_state
        mapped = jax.shard_map(
            step, mesh=self.mesh, in_specs=(P(), P(None, AXIS)), out_specs=P(), check_vma=False
        )
        return jax.jit(mapped, donate_argnums=0)

    def compile(self, mapped: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
        """Compiles a mapped training step for its arguments, where JAX can do so in advance."""
        if self.kind == "pmap" or not isinstance(mapped, jax.stages.Wrapped):
            return mapped
        return mapped.lower(*arguments).compile()

    def _joined(self, copies: jax.Array) -> jax.Array:
        """Joins the copies in this process, which pmap returns, to one global array."""
        shards = [shard.data for shard in copies.addressable_shards]
        return jax.make_array_from_single_device_arrays(copies.shape, self.replicated, shards)

    def map_eval_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Maps `(variables, batch) → outputs`; outputs keep the batch's leading axis [B, …].

        The step gets the batch without the axis of parts that `put_batch` requires.
        """

        def one_part(variables: Any, batch: Any) -> Any:
            return step(variables, jax.tree.map(lambda x: x[0], batch))

        if self.kind == "pmap":
            devices = list(self.mesh.devices)
            mapped = jax.pmap(one_part, AXIS, in_axes=(None, 1), devices=devices)
            return lambda variables, batch: jax.tree.map(
                lambda x: x.reshape(-1, *x.shape[2:]), mapped(variables, batch)
            )
        specs = (P(), P(None, AXIS))
        return jax.jit(
            jax.shard_map(
                one_part, mesh=self.mesh, in_specs=specs, out_specs=P(AXIS), check_vma=False
            )
        )

    def local_rows(self, tree: Any) -> Any:
        """Returns this process's rows [b, …] of the outputs of a mapped evaluation, in NumPy."""
        if jax.process_count() == 1:
            return jax.device_get(tree)

        def rows(array: jax.Array) -> np.ndarray:
            shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
            return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])

        return jax.tree.map(rows, tree)

    def put_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Sends host arrays [parts, B, …] to the devices, split along the B examples."""
        return {key: self._put(value) for key, value in batch.items()}

    def _put(self, array: np.ndarray) -> jax.Array:
        array = array.reshape(self._rows(array.shape, self.mesh.local_mesh.size))
        return jax.make_array_from_process_local_data(self._split, array)

    def batch_shapes(self, batch: dict[str, jax.ShapeDtypeStruct]) -> Any:
        """Returns shapes and types of `put_batch` for the whole batch [parts, B, …]."""
        return {
            key: jax.ShapeDtypeStruct(
                self._rows(x.shape, self.mesh.size), x.dtype, sharding=self._split
            )
            for key, x in batch.items()
        }

    @property
    def _split(self) -> NamedSharding:
        return NamedSharding(self.mesh, P(None, AXIS))

    def _rows(self, shape: Sequence[int], devices: int) -> tuple[int, ...]:
        """Returns the shape that splits a batch [parts, B, …]: pmap wants an axis of devices."""
        parts, examples, *rest = shape
        if self.kind == "pmap":
            return (parts, devices, examples // devices, *rest)
        return tuple(shape)
