"""Layers shared by the networks: BatchNorm over part of a batch, convolutions, pooling."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from scratchdet_jax.errors import UserError
from scratchdet_jax.models import packing
from scratchdet_jax.models.packing import Packed

Map = jax.Array | Packed  # [B, H, W, C]
Replicas = tuple[tuple[int, ...], ...] | None  # that share statistics; None: each by itself

# He et al. 2015 with gain sqrt(2) and the fan-out; Glorot & Bengio 2010.
KAIMING_NORMAL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
XAVIER_UNIFORM = nn.initializers.xavier_uniform()


def check_norm_span(span: int, local: int | None = None, replicas: int = 1) -> None:
    """Raises UserError unless BatchNorm statistics can cover groups of `span` images.

    The groups are consecutive images of the global batch. Each is part of one replica's images, or
    all images of one or more replicas.

    Args:
        span: `config.model.norm_span`; 0 for the global batch.
        local: images on each replica; None if the batch is not known yet.
        replicas: number of replicas.
    """
    if span < 0:
        raise UserError(
            f"config.model.norm_span is {span}: use 0 (the whole batch) or a number of images"
        )
    if local is None or span == 0:
        return
    total = local * replicas
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

    Attributes:
        axis_name: mapped axis over which the global batch is split; None for a single replica.
        span: images that share statistics (`config.model.norm_span`); 0 for the global batch.
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
    def __call__(
        self, inputs: Map, train: bool, relu: bool = False, pool: bool = False
    ) -> Map:
        """Normalises `inputs` [B, ..., C] over all axes but the last, then applies ReLU if `relu`.

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
        span = self.span or local * replicas
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
        """Sums of arrays [B, H, W, C] over each local group and over each whole group, [n, G, C]."""
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
        scale, bias: [C].
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

    pooling = None
    if settings.pool:
        outputs, winner, source = _pool(x, apply)
        pooling = outputs, winner, source
    else:
        outputs = apply(x)
    residuals = (inputs, mean, var, scale, bias, pooling)
    return (Packed(outputs) if packed else outputs, mean, var), residuals


def _normalize_backward(settings: _Settings, residuals: Any, cotangents: Any) -> tuple[Any, ...]:
    inputs, mean, var, scale, bias, pooling = residuals
    packed = isinstance(inputs, Packed)
    x = inputs.array if packed else inputs
    gradient = cotangents[0].array if packed else cotangents[0]
    inverse = jax.lax.rsqrt(var + settings.epsilon)
    slope = scale * inverse

    def spread(values: jax.Array) -> jax.Array:
        return settings.spread(values, x, packed)

    # The sums need only the values that won their windows.
    outputs, winner, source = pooling or (None, None, x)
    if settings.relu:
        if outputs is None:
            outputs = x.astype(jnp.float32) * spread(slope) + spread(bias - mean * slope)
        gradient = jnp.where(outputs > 0, gradient, 0)
    products = gradient.astype(jnp.float32) * (source.astype(jnp.float32) - spread(mean))
    local, whole = settings.group_sums([gradient.astype(jnp.float32), products], packed)
    if pooling:
        gradient = _pool_backward(winner, gradient)[0]
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

    outputs = _pool(x, apply)[0] if pool else apply(x)
    return Packed(outputs) if packed else outputs


@dataclasses.dataclass(frozen=True)
class Layers:
    """How one network builds its convolutions and normalisations; fields as in `BatchNorm`.

    Attributes:
        norm: "batch", or "none" for biased convolutions without normalisation.
        kernel_init: initialiser of the convolution kernels.
    """

    norm: str = "batch"
    axis_name: str | None = None
    span: int = 0
    decay: float = 0.9
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = KAIMING_NORMAL
    packed: bool = False

    def convolve(
        self,
        x: Map,
        features: int,
        kernel: int,
        *,
        name: str,
        stride: int = 1,
        dilation: int = 1,
        padding: int | None = None,
    ) -> Map:
        """Convolves x [B, H, W, C] with `features` square kernels; call it inside a module.

        Pads by dilation · (kernel − 1) / 2 on every side, or by `padding`, as PyTorch and Caffe
        do. "SAME" would pad an even map with stride 2 on one side only, which shifts the features
        relative to the anchors. Biased only without norms: a following norm would cancel the bias.
        """
        if padding is None:
            padding = dilation * (kernel - 1) // 2
        return Convolution(features, kernel, stride, dilation, padding, self, name=name)(x)

    def normalize(
        self, x: Map, train: bool, *, name: str, relu: bool = False, pool: bool = False
    ) -> Map:
        """Normalises x [B, H, W, C], unless `norm` is "none"; then ReLU and 2×2 max-pooling.

        `pool` needs even H and W.
        """
        if self.norm == "none":
            x = jax.tree.map(nn.relu, x) if relu else x
            return max_pool_2x2(x) if pool else x
        norm = BatchNorm(
            self.axis_name, self.span, self.decay, self.epsilon, self.dtype, name=name
        )
        return norm(x, train, relu, pool)


class Convolution(nn.Module):
    """A convolution of a plain or packed map; see `Layers.convolve`.

    Parameters: `kernel` [k, k, C, features]; `bias` [features] without norms.
    """

    features: int
    kernel: int
    stride: int
    dilation: int
    padding: int
    layers: Layers

    @nn.compact
    def __call__(self, x: Map) -> Map:
        """Maps x [B, H, W, C] to [B, h, w, features]."""
        layers, size = self.layers, self.kernel
        shape = (size, size, x.shape[-1], self.features)
        kernel = self.param("kernel", layers.kernel_init, shape, jnp.float32)
        kernel = kernel.astype(layers.dtype)
        packed = isinstance(x, Packed) or layers.packed and packing.fits(x.shape, self.features)
        if packed:
            x, kernel = packing.pack(x).array, packing.block_diagonal(kernel)
        y = jax.lax.conv_general_dilated(
            x.astype(layers.dtype),
            kernel,
            window_strides=(self.stride, self.stride),
            padding=((self.padding, self.padding),) * 2,
            rhs_dilation=(self.dilation, self.dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        if layers.norm == "none":
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            bias = bias.astype(layers.dtype)
            y += packing.per_image(bias) if packed else bias
        if not packed:
            return y
        y = Packed(y)
        return y if packing.fits(y.shape, self.features) else packing.unpack(y)


def packs(layout: str) -> bool:
    """Whether `config.model.layout` packs narrow maps; "auto" does so on TPUs."""
    return layout == "packed" or (layout == "auto" and jax.default_backend() == "tpu")


def plain(x: Map) -> jax.Array:
    """The map as an array [B, H, W, C]."""
    return packing.unpack(x)


def add(x: Map, y: Map) -> Map:
    """The sum of two maps of the same shape."""
    if isinstance(x, Packed) and isinstance(y, Packed):
        return Packed(x.array + y.array)
    return packing.unpack(x) + packing.unpack(y)


def relu(x: Map) -> Map:
    """max(x, 0)."""
    return jax.tree.map(nn.relu, x)


class L2Norm(nn.Module):
    """Normalises each cell's channel vector, then scales each channel (Liu et al. 2016 §3.1).

    ParseNet's normalisation, which SSD applies to conv4_3 because its values are far larger than
    those of the later source maps: x / ‖x‖₂ · scale, with an initial scale of 20. The norm is
    computed in float32.

    Attributes:
        dtype: type of the output.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Map) -> jax.Array:
        """Maps x [B, H, W, C] to the same shape; a cell of zeros stays zero."""
        scale = self.param("scale", nn.initializers.constant(20.0), x.shape[-1:], jnp.float32)
        x = plain(x).astype(jnp.float32)
        # Added to the square, as in SSD: the square root has no gradient at 0.
        length = jnp.sqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-10)
        return (x / length * scale).astype(self.dtype)


def max_pool_3x3(x: Map, stride: int) -> jax.Array:
    """Maximum over 3×3 windows, padded by 1: x [B, H, W, C] → [B, ⌈H/stride⌉, ⌈W/stride⌉, C].

    Takes maxima of shifted views, first over rows, then over columns, for the same reason as
    `max_pool_2x2`; equal maxima share their gradient.
    """
    x = plain(x)
    for axis in (1, 2):
        size = x.shape[axis]
        edges = [(0, 0)] * x.ndim
        edges[axis] = (1, 1)
        padded = jnp.pad(x, edges, constant_values=-jnp.inf)
        shifted = [
            jax.lax.slice_in_dim(padded, i, i + size, stride=stride, axis=axis) for i in range(3)
        ]
        x = jnp.maximum(jnp.maximum(shifted[0], shifted[1]), shifted[2])
    return x


def max_pool_2x2(x: Map, ceil: bool = False) -> Map:
    """Maximum over 2×2 windows, stride 2: x [B, H, W, C] → [B, ⌊H/2⌋, ⌊W/2⌋, C].

    The gradient goes to the first of equal maxima, as in PyTorch. As in PyTorch, the last row or
    column of an odd size is dropped; with `ceil`, as in Caffe, it forms extra windows.

    XLA's pooling is not used: its gradient is not deterministic on GPUs and rereads the whole map.
    """
    if isinstance(x, Packed):
        return Packed(max_pool_2x2(x.array, ceil))
    if ceil:
        edges = ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0))
        x = jnp.pad(x, edges, constant_values=-jnp.inf)
    height, width = (size // 2 * 2 for size in x.shape[1:3])
    return _even_max_pool(x[:, :height, :width])


_WINDOW = ((0, 0), (0, 1), (1, 0), (1, 1))  # row and column of each value, in PyTorch's order


@jax.custom_vjp
def _even_max_pool(x: jax.Array) -> jax.Array:
    return _pool_forward(x)[0]


def _pool_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _pool(x, lambda values: values)[:2]


def _pool(
    x: jax.Array, apply: Callable[[jax.Array], jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The maxima of apply(x), for each the index in _WINDOW that it came from, uint8, and x there.

    `apply`, which acts on each value, is called on the parts of the windows: the map itself would
    be written out.
    """
    sources = [x[:, row::2, column::2] for row, column in _WINDOW]
    values = [apply(part) for part in sources]
    largest = jnp.maximum(jnp.maximum(values[0], values[1]), jnp.maximum(values[2], values[3]))
    winner, source = jnp.full(largest.shape, 3, jnp.uint8), sources[3]
    for i in (2, 1, 0):
        found = values[i] == largest
        winner = jnp.where(found, jnp.uint8(i), winner)
        source = jnp.where(found, sources[i], source)
    return largest, winner, source


def _pool_backward(winner: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    tpu = _to_winners_by_windows if gradient.dtype == jnp.bfloat16 else _to_winners_by_padding
    to_winners = functools.partial(
        jax.lax.platform_dependent, tpu=tpu, default=_to_winners_by_padding
    )
    return (to_winners(winner, gradient),)


def _to_winners_by_windows(winner: jax.Array, gradient: jax.Array) -> jax.Array:
    """The bfloat16 gradient of each window at its winner, in one pass on TPUs.

    Gradient and winner share the 32 bits of an integer, which is repeated over its window as the
    sum of a map with gaps: the one way of repeating that TPUs' compiler fuses with what follows.
    """
    bits = jax.lax.bitcast_convert_type(gradient.astype(jnp.float32), jnp.int32)  # 16 are 0
    repeated = jax.lax.reduce_window(
        bits | winner.astype(jnp.int32),
        jnp.int32(0),
        jax.lax.add,
        window_dimensions=(1, 2, 2, 1),
        window_strides=(1, 1, 1, 1),
        padding=((0, 0), (1, 1), (1, 1), (0, 0)),
        base_dilation=(1, 2, 2, 1),
    )
    rows, columns = (jnp.arange(2 * size) % 2 for size in winner.shape[1:3])
    index = 2 * rows[:, None, None] + columns[:, None]
    values = jax.lax.bitcast_convert_type(repeated & ~3, jnp.float32).astype(gradient.dtype)
    return jnp.where((repeated & 3) == index, values, 0)


def _to_winners_by_padding(winner: jax.Array, gradient: jax.Array) -> jax.Array:
    """The gradient of each window at its winner, as a sum of four maps with gaps."""
    zero = jnp.zeros((), gradient.dtype)
    spread = zero
    for i, (row, column) in enumerate(_WINDOW):
        own = jnp.where(winner == i, gradient, zero)
        edges = ((0, 0, 0), (row, 1 - row, 1), (column, 1 - column, 1), (0, 0, 0))
        spread += jax.lax.pad(own, zero, edges)
    return spread


_even_max_pool.defvjp(_pool_forward, _pool_backward)
