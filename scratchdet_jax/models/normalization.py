"""BatchNorm over a part of the batch, with the ReLU and the pooling that follow it."""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from scratchdet_jax.errors import UserError
from scratchdet_jax.models import packing, pooling
from scratchdet_jax.models.packing import Map, Packed

Replicas = tuple[tuple[int, ...], ...] | None  # that share statistics; None: each by itself


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


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) whose statistics cover `span` images.

    In training, the statistics are those of `span` consecutive images of the *global* batch: the
    images of all replicas of the mapped axis `axis_name`, in order. `span = 0` covers all of them.
    Otherwise the running averages are used, and no axis needs to be bound (as in `init`).

    Why not `flax.linen.BatchNorm`: it can group replicas (`axis_index_groups`), but each group then
    keeps its own running averages, so the state differs between replicas and a checkpoint depends
    on which replica wrote it. It also cannot split the images of one replica. Here the running
    averages use the mean over all groups and are the same on every replica.

    Statistics are float32 whatever `dtype` is. They take one pass over the activations: mean and
    mean square about the running mean, which avoids the cancellation in E[x²] − E[x]² where the
    mean is large compared with the deviation. The running variance is the unbiased one
    (n / (n − 1)), as in PyTorch and Caffe; the normalisation uses the biased one.

    In training, the layer, the ReLU and the pooling after it are one function with a gradient of
    its own (`_normalize`): only reverse-mode differentiation works.

    Attributes:
        axis_name: mapped axis over which the global batch is split; None for a single replica.
        span: images that share statistics (`config.model.norm_span`); 0, or more than there are,
            for the global batch.
        decay: running = decay · running + (1 − decay) · batch.
        epsilon: added to the variance.
        dtype: type of the output.
    """

    axis_name: str | None = None
    span: int = 0
    decay: float = 0.9
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: Map, train: bool, relu: bool = False, pool: bool = False) -> Map:
        """Normalises `inputs` [B, ..., C] over all axes but the last.

        Args:
            inputs: the map.
            train: whether to use the statistics of the batch.
            relu: whether a ReLU follows.
            pool: whether 2×2 max-pooling follows; it needs even H and W.

        Raises:
            UserError: in training, the batch does not divide into groups of `span` images.
        """
        channels = inputs.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)

        if not train:
            variables = running_mean.value, running_var.value, scale, bias
            return _affine(inputs, *variables, self.epsilon, self.dtype, relu, pool)

        groups, replicas = self._grouping(inputs.shape[0])
        if isinstance(inputs, Packed) and groups % packing.IMAGES and groups > 1:
            inputs = packing.unpack(inputs)  # the images of a pair are in different groups
        count = math.prod(inputs.shape[:-1]) // groups
        settings = _Settings(
            groups, self.axis_name, replicas, count, self.epsilon, self.dtype, relu, pool
        )
        outputs, mean, var = _normalize(settings, inputs, scale, bias, running_mean.value)
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            batch_mean, batch_var = self._average(mean, var, settings.total, replicas)
            running_mean.value = self.decay * running_mean.value + (1 - self.decay) * batch_mean
            running_var.value = self.decay * running_var.value + (1 - self.decay) * batch_var
        return outputs

    def _grouping(self, local: int) -> tuple[int, Replicas]:
        """Number of groups within a replica's `local` images, and the replicas that share a group.

        Replicas are None where a group stays within one replica.
        """
        replicas = jax.lax.axis_size(self.axis_name) if self.axis_name else 1
        check_norm_span(self.span, local, replicas)
        span = min(self.span or local * replicas, local * replicas)
        if span <= local:
            return local // span, None
        width = span // local
        return 1, tuple(tuple(range(i, i + width)) for i in range(0, replicas, width))

    def _average(
        self, mean: jax.Array, var: jax.Array, count: int, replicas: Replicas
    ) -> tuple[jax.Array, jax.Array]:
        """Mean and unbiased variance [C]: means over all groups of all replicas of [G, C]."""
        moments = jnp.stack([mean, var * (count / max(count - 1, 1))]).mean(1)
        one_group = replicas is not None and len(replicas) == 1
        if self.axis_name and not one_group:
            moments = jax.lax.pmean(moments, self.axis_name)
        return moments[0], moments[1]


@dataclasses.dataclass(frozen=True)
class _Settings:
    """The fixed arguments of `_normalize`.

    Attributes:
        groups: of the local images that have statistics of their own.
        axis_name, replicas: the replicas that share a group.
        count: values of a channel in a local group.
        epsilon, dtype, relu, pool: as in `BatchNorm`.
    """

    groups: int
    axis_name: str | None
    replicas: Replicas
    count: int
    epsilon: float
    dtype: jnp.dtype
    relu: bool
    pool: bool

    @property
    def total(self) -> int:
        """Values of a channel in a group."""
        return self.count * (len(self.replicas[0]) if self.replicas else 1)

    def group_sums(self, parts: list[jax.Array], packed: bool) -> tuple[jax.Array, jax.Array]:
        """Sums of n arrays [B, H, W, C] over the local part of each group, and over all of it.

        Both are [n, G, C].
        """
        sums = []
        for x in parts:
            x = x.reshape(self._batch_groups(packed), -1, *x.shape[1:])
            sums.append(x.sum(tuple(range(1, x.ndim - 1))))
        local = jnp.stack(sums)
        if packed:
            local = local.reshape(len(parts), -1, packing.IMAGES, local.shape[-1] // packing.IMAGES)
            local = local.sum(2) if self.groups == 1 else local.reshape(len(parts), self.groups, -1)
        if self.replicas is None:
            return local, local
        # One group covers the axis: backends do the plain reduction best.
        subgroups = self.replicas if len(self.replicas) > 1 else None
        return local, jax.lax.psum(local, self.axis_name, axis_index_groups=subgroups)

    def spread(self, values: jax.Array, x: jax.Array, packed: bool) -> jax.Array:
        """Values [G, C] of the groups, to combine with x [B, H, W, C] or a packed x."""
        if packed and self.groups == 1:
            values = packing.per_image(values)
        groups = self._batch_groups(packed)
        values = values.reshape(groups, 1, x.shape[-1])
        values = jnp.broadcast_to(values, (groups, x.shape[0] // groups, x.shape[-1]))
        return values.reshape(-1, *[1] * (x.ndim - 2), x.shape[-1]) if groups > 1 else values[0, :1]

    def _batch_groups(self, packed: bool) -> int:
        return max(self.groups // packing.IMAGES, 1) if packed else self.groups


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalize(
    settings: _Settings, inputs: Map, scale: jax.Array, bias: jax.Array, shift: jax.Array
) -> tuple[Map, jax.Array, jax.Array]:
    """Training's normalisation, with the ReLU and 2×2 pooling that follow it.

    Its gradient is written out, so that it reads the inputs and the incoming gradient twice and
    writes once. No gradient flows through the returned statistics and through `shift`.

    Args:
        settings: what is fixed.
        inputs: [B, H, W, C].
        scale: [C].
        bias: [C].
        shift: [C], near the mean; the statistics are taken about it.

    Returns:
        The outputs, and mean and biased variance [G, C] of each group.
    """
    return _normalize_forward(settings, inputs, scale, bias, shift)[0]


def _normalize_forward(
    settings: _Settings, inputs: Map, scale: jax.Array, bias: jax.Array, shift: jax.Array
) -> tuple[Any, Any]:
    packed = isinstance(inputs, Packed)
    x = inputs.array if packed else inputs
    centred = x.astype(jnp.float32) - (packing.per_image(shift) if packed else shift)
    _, sums = settings.group_sums([centred, jnp.square(centred)], packed)
    mean, mean_square = sums / settings.total
    # Rounding can leave the variance of a constant channel slightly below zero.
    var = jnp.maximum(mean_square - jnp.square(mean), 0.0)
    mean += shift

    slope = scale * jax.lax.rsqrt(var + settings.epsilon)
    slope, offset = (settings.spread(v, x, packed) for v in (slope, bias - mean * slope))

    def apply(x: jax.Array) -> jax.Array:
        y = (x.astype(jnp.float32) * slope + offset).astype(settings.dtype)
        return jnp.maximum(y, 0) if settings.relu else y

    pooled = None
    if settings.pool:
        # The barrier: the gradient reads these maps and does not compute them again from x.
        pooled = jax.lax.optimization_barrier(pooling.pool(x, apply))
        outputs = pooled[0]
    else:
        outputs = apply(x)
    residuals = (inputs, mean, var, scale, bias, pooled)
    return (Packed(outputs) if packed else outputs, mean, var), residuals


def _normalize_backward(settings: _Settings, residuals: Any, cotangents: Any) -> tuple[Any, ...]:
    inputs, mean, var, scale, bias, pooled = residuals
    packed = isinstance(inputs, Packed)
    x = inputs.array if packed else inputs
    gradient = cotangents[0].array if packed else cotangents[0]
    inverse = jax.lax.rsqrt(var + settings.epsilon)
    slope = scale * inverse

    def spread(values: jax.Array) -> jax.Array:
        return settings.spread(values, x, packed)

    # The sums need only the values that won their windows.
    outputs, winner, source = pooled or (None, None, x)
    if settings.relu:
        if outputs is None:
            outputs = x.astype(jnp.float32) * spread(slope) + spread(bias - mean * slope)
        gradient = jnp.where(outputs > 0, gradient, 0)
    products = gradient.astype(jnp.float32) * (source.astype(jnp.float32) - spread(mean))
    local, whole = settings.group_sums([gradient.astype(jnp.float32), products], packed)
    if pooled:
        gradient = pooling.to_winners(winner, gradient)
    # With x̂ = (x − mean) · inverse: dx = slope · (g − mean(g) − x̂ · mean(g · x̂)).
    mean_gradient, mean_product = whole / settings.total
    tilt = slope * mean_product * jnp.square(inverse)
    constant = tilt * mean - slope * mean_gradient
    dx = gradient.astype(jnp.float32) * spread(slope) + spread(constant)
    dx = (dx - x.astype(jnp.float32) * spread(tilt)).astype(x.dtype)
    d_bias, d_scale = local[0].sum(0), (local[1] * inverse).sum(0)
    return Packed(dx) if packed else dx, d_scale, d_bias, jnp.zeros_like(d_bias)


_normalize.defvjp(_normalize_forward, _normalize_backward)


def _affine(
    inputs: Map,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    dtype: jnp.dtype,
    relu: bool,
    pool: bool,
) -> Map:
    """Evaluation's normalisation with given statistics [C], with ReLU and pooling."""
    packed = isinstance(inputs, Packed)
    x = inputs.array if packed else inputs
    slope = scale * jax.lax.rsqrt(var + epsilon)
    offset = bias - mean * slope
    if packed:
        slope, offset = packing.per_image(slope), packing.per_image(offset)

    def apply(x: jax.Array) -> jax.Array:
        y = (x.astype(jnp.float32) * slope + offset).astype(dtype)
        return jnp.maximum(y, 0) if relu else y

    outputs = pooling.pool(x, apply)[0] if pool else apply(x)
    return Packed(outputs) if packed else outputs
