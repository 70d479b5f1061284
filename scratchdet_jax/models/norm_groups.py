"""The images that share BatchNorm statistics: within a replica, or over several replicas."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from scratchdet_jax.errors import UserError
from scratchdet_jax.models.packing import IMAGES, per_image


def check_norm_span(span: int, local: int | None = None, replicas: int = 1) -> None:
    """Raises UserError unless BatchNorm statistics can cover groups of `span` images.

    The groups are consecutive images of the global batch. Each is part of one replica's images, or
    all images of one or more replicas.

    Args:
        span: `config.model.norm_span`; 0, or more than the global batch, for the global batch.
        local: images on each replica; None if the batch is not known yet.
        replicas: number of replicas.
    """
    if span < 0:
        raise UserError(
            f"config.model.norm_span is {span}: use 0 (the whole batch) or a number of images"
        )
    if local is None or span == 0 or span >= (total := local * replicas):
        return
    fits = local % span == 0 if span <= local else span % local == 0 and total % span == 0
    if not fits:
        raise UserError(
            f"config.model.norm_span is {span}, which does not fit a global batch of {total} with "
            f"{local} per device: use 0 (the whole batch), a divisor of {local}, or a multiple of "
            f"{local} that divides {total}"
        )


@dataclasses.dataclass(frozen=True)
class Groups:
    """How a replica's images are divided into groups that share statistics.

    Attributes:
        local: G, number of groups within the replica's images; 1 where a group is larger.
        axis_name: mapped axis of the replicas; None for a single replica.
        replicas: the replicas that share each group; None where a group stays within one replica.
        packed: whether the arrays are packed maps', [B/2, H, W, 2C]. G is then 1 or even: the two
            images of a pair are in one group, or each in a group of its half.
    """

    local: int
    axis_name: str | None
    replicas: tuple[tuple[int, ...], ...] | None
    packed: bool

    @classmethod
    def of_span(cls, span: int, images: int, axis_name: str | None, packed: bool) -> "Groups":
        """Divides the global batch, `images` on each replica, into groups of `span` images.

        The result is only packed if `packed` maps can be divided so.

        Raises:
            UserError: the batch does not divide into such groups.
        """
        replicas = jax.lax.axis_size(axis_name) if axis_name else 1
        total = images * replicas
        check_norm_span(span, images, replicas)
        span = min(span or total, total)
        if span <= images:
            local = images // span
            return cls(local, axis_name, None, packed and (local == 1 or local % IMAGES == 0))
        width = span // images
        shared = tuple(tuple(range(i, i + width)) for i in range(0, replicas, width))
        return cls(1, axis_name, shared, packed)

    def count(self, x: jax.Array) -> int:
        """Returns the number of values of a channel of x [B, H, W, C] in a group."""
        images = IMAGES if self.packed else 1
        replicas = len(self.replicas[0]) if self.replicas else 1
        return math.prod(x.shape[:-1]) * images // self.local * replicas

    def sums(self, parts: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Sums n arrays [B, H, W, C] over each group.

        Returns:
            The sums over this replica's part of each group, and over all of it; both [n, G, C].
        """
        sums = []
        for x in parts:
            x = x.reshape(self._array_groups, -1, *x.shape[1:])
            sums.append(x.sum(tuple(range(1, x.ndim - 1))))
        local = jnp.stack(sums)
        if self.packed:
            local = self._unpacked_sums(local)
        if self.replicas is None:
            return local, local
        # One group covers the axis: backends do the plain reduction best.
        subgroups = self.replicas if len(self.replicas) > 1 else None
        return local, jax.lax.psum(local, self.axis_name, axis_index_groups=subgroups)

    def _unpacked_sums(self, sums: jax.Array) -> jax.Array:
        """Sums [n, G, C] from those [n, …, 2C] of packed arrays."""
        count, _, channels = sums.shape
        sums = sums.reshape(count, -1, IMAGES, channels // IMAGES)
        return sums.sum(2) if self.local == 1 else sums.reshape(count, self.local, -1)

    def spread(self, values: jax.Array, x: jax.Array) -> jax.Array:
        """Repeats values [G, C] of the groups, to combine them with x [B, H, W, C]."""
        if self.packed and self.local == 1:
            values = per_image(values)
        groups = self._array_groups
        values = values.reshape(groups, 1, x.shape[-1])
        values = jnp.broadcast_to(values, (groups, x.shape[0] // groups, x.shape[-1]))
        return values.reshape(-1, *[1] * (x.ndim - 2), x.shape[-1]) if groups > 1 else values[0, :1]

    @property
    def _array_groups(self) -> int:
        """Groups in which an array's first axis lies; a packed array has two side by side."""
        return max(self.local // IMAGES, 1) if self.packed else self.local

    def mean_over_groups(self, values: jax.Array) -> jax.Array:
        """Averages values [n, G, C] over all groups of all replicas: [n, C], equal everywhere."""
        values = values.mean(1)
        one_group = self.replicas is not None and len(self.replicas) == 1
        if self.axis_name and not one_group:
            values = jax.lax.pmean(values, self.axis_name)
        return values
