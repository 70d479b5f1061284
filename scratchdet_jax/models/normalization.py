"""BatchNorm over a part of the batch, with the ReLU and the pooling that follow it."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from scratchdet_jax.models import packing, pooling
from scratchdet_jax.models.norm_groups import Groups
from scratchdet_jax.models.packing import Map, Packed


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
    dtype: DTypeLike = jnp.float32

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

        fused = _Fused(self.epsilon, self.dtype, relu, pool)
        if not train:
            return fused.with_statistics(inputs, running_mean.value, running_var.value, scale, bias)
        packed = isinstance(inputs, Packed)
        groups = Groups.of_span(self.span, inputs.shape[0], self.axis_name, packed)
        x = inputs.array if isinstance(inputs, Packed) and groups.packed else packing.unpack(inputs)
        outputs, mean, var = _normalize(groups, fused, x, scale, bias, running_mean.value)
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            count = groups.count(x)
            unbiased = var * (count / max(count - 1, 1))
            mean, var = groups.mean_over_groups(jnp.stack([mean, unbiased]))
            running_mean.value = self.decay * running_mean.value + (1 - self.decay) * mean
            running_var.value = self.decay * running_var.value + (1 - self.decay) * var
        return Packed(outputs) if groups.packed else outputs


@dataclasses.dataclass(frozen=True)
class _Fused:
    """What one pass over a map computes; fields as in `BatchNorm` and its call."""

    epsilon: float
    dtype: DTypeLike
    relu: bool
    pool: bool

    def apply(self, x: jax.Array, slope: jax.Array, offset: jax.Array) -> jax.Array:
        """Computes slope · x + offset, with the ReLU."""
        y = (x.astype(jnp.float32) * slope + offset).astype(self.dtype)
        return jnp.maximum(y, 0) if self.relu else y

    def apply_and_pool(
        self, x: jax.Array, slope: jax.Array, offset: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Pools the result of `apply`; see pooling.pool."""
        return pooling.pool(x, lambda part: self.apply(part, slope, offset))

    def with_statistics(
        self, inputs: Map, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array
    ) -> Map:
        """Normalises by statistics [C] that are given, as in evaluation."""
        slope = scale * jax.lax.rsqrt(var + self.epsilon)
        offset = bias - mean * slope
        x = inputs.array if isinstance(inputs, Packed) else inputs
        if isinstance(inputs, Packed):
            slope, offset = packing.per_image(slope), packing.per_image(offset)
        if self.pool:
            outputs, *_ = self.apply_and_pool(x, slope, offset)
        else:
            outputs = self.apply(x, slope, offset)
        return Packed(outputs) if isinstance(inputs, Packed) else outputs


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _normalize(
    groups: Groups, fused: _Fused, x: jax.Array, scale: jax.Array, bias: jax.Array, shift: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises as in training, with the ReLU and 2×2 pooling that follow.

    The gradient is written out, so that it reads the inputs and the incoming gradient twice and
    writes once. No gradient flows through the returned statistics and through `shift`.

    Args:
        groups: what shares statistics.
        fused: what is computed.
        x: [B, H, W, C], or a packed map's array.
        scale: [C].
        bias: [C].
        shift: [C], near the mean; the statistics are taken about it.

    Returns:
        The outputs, and mean and biased variance [G, C] of each group.
    """
    return _normalize_forward(groups, fused, x, scale, bias, shift)[0]


def _normalize_forward(
    groups: Groups, fused: _Fused, x: jax.Array, scale: jax.Array, bias: jax.Array, shift: jax.Array
) -> tuple[Any, Any]:
    centred = x.astype(jnp.float32) - (packing.per_image(shift) if groups.packed else shift)
    _, sums = groups.sums([centred, jnp.square(centred)])
    mean, mean_square = sums / groups.count(x)
    # Rounding can leave the variance of a constant channel slightly below zero.
    var = jnp.maximum(mean_square - jnp.square(mean), 0.0)
    mean += shift

    slope = scale * jax.lax.rsqrt(var + fused.epsilon)
    slope, offset = groups.spread(slope, x), groups.spread(bias - mean * slope, x)
    if fused.pool:
        # The barrier: the gradient reads these maps and does not compute them again from x.
        pooled = jax.lax.optimization_barrier(fused.apply_and_pool(x, slope, offset))
        outputs = pooled[0]
    else:
        pooled, outputs = None, fused.apply(x, slope, offset)
    return (outputs, mean, var), (x, mean, var, scale, bias, pooled)


def _normalize_backward(
    groups: Groups, fused: _Fused, residuals: Any, cotangents: Any
) -> tuple[jax.Array, ...]:
    x, mean, var, scale, bias, pooled = residuals
    gradient, *_ = cotangents
    inverse = jax.lax.rsqrt(var + fused.epsilon)
    slope = scale * inverse

    def spread(values: jax.Array) -> jax.Array:
        return groups.spread(values, x)

    # The sums need only the values that won their windows.
    outputs, winner, source = pooled or (None, None, x)
    if fused.relu:
        if outputs is None:
            outputs = x.astype(jnp.float32) * spread(slope) + spread(bias - mean * slope)
        gradient = jnp.where(outputs > 0, gradient, 0)
    products = gradient.astype(jnp.float32) * (source.astype(jnp.float32) - spread(mean))
    local, whole = groups.sums([gradient.astype(jnp.float32), products])
    if winner is not None:
        gradient = pooling.to_winners(winner, gradient)
    # With x̂ = (x − mean) · inverse: dx = slope · (g − mean(g) − x̂ · mean(g · x̂)).
    mean_gradient, mean_product = whole / groups.count(x)
    tilt = slope * mean_product * jnp.square(inverse)
    constant = tilt * mean - slope * mean_gradient
    dx = gradient.astype(jnp.float32) * spread(slope) + spread(constant)
    dx = (dx - x.astype(jnp.float32) * spread(tilt)).astype(x.dtype)
    d_bias, d_scale = local[0].sum(0), (local[1] * inverse).sum(0)
    return dx, d_scale, d_bias, jnp.zeros_like(d_bias)


_normalize.defvjp(_normalize_forward, _normalize_backward)
