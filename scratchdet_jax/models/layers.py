"""Layers shared by the networks: BatchNorm over part of a batch, convolutions, pooling."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from scratchdet_jax.errors import UserError

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
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """Normalises `inputs` [B, ..., C] over all axes but the last.

        Raises:
            UserError: in training, the batch does not divide into groups of `span` images.
        """
        channels = inputs.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)

        if not train:
            factor = scale * jax.lax.rsqrt(running_var.value + self.epsilon)
            outputs = (inputs.astype(jnp.float32) - running_mean.value) * factor + bias
            return outputs.astype(self.dtype)

        groups, replicas = self._grouping(inputs.shape[0])
        x = inputs.astype(jnp.float32).reshape(groups, -1, *inputs.shape[1:])
        mean, var = self._statistics(x, running_mean.value, replicas)
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            count = x.size // (groups * x.shape[-1]) * (len(replicas[0]) if replicas else 1)
            batch_mean, batch_var = self._average(mean, var, count, replicas)
            running_mean.value = self.decay * running_mean.value + (1 - self.decay) * batch_mean
            running_var.value = self.decay * running_var.value + (1 - self.decay) * batch_var

        per_group = (groups, *[1] * (x.ndim - 2), x.shape[-1])
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        outputs = (x - mean.reshape(per_group)) * factor.reshape(per_group) + bias
        return outputs.reshape(inputs.shape).astype(self.dtype)

    def _grouping(self, local: int) -> tuple[int, list[list[int]] | None]:
        """Number of groups within a replica's `local` images, and the replicas that share a group.

        Replicas are None where a group stays within one replica.
        """
        replicas = jax.lax.axis_size(self.axis_name) if self.axis_name else 1
        check_norm_span(self.span, local, replicas)
        span = self.span or local * replicas
        if span <= local:
            return local // span, None
        width = span // local
        return 1, [list(range(i, i + width)) for i in range(0, replicas, width)]

    def _statistics(
        self, x: jax.Array, shift: jax.Array, replicas: list[list[int]] | None
    ) -> tuple[jax.Array, jax.Array]:
        """Mean and biased variance [G, C] of each group of x [G, N, ..., C], float32."""
        shift = jax.lax.stop_gradient(shift)
        axes = tuple(range(1, x.ndim - 1))
        centred = x - shift
        moments = jnp.stack([centred.mean(axes), jnp.square(centred).mean(axes)])
        if replicas is not None:
            # One group covers the axis: backends do the plain reduction best.
            subgroups = replicas if len(replicas) > 1 else None
            moments = jax.lax.pmean(moments, self.axis_name, axis_index_groups=subgroups)
        mean, mean_square = moments
        # Rounding can leave the variance of a constant channel slightly below zero.
        return mean + shift, jnp.maximum(mean_square - jnp.square(mean), 0.0)

    def _average(
        self, mean: jax.Array, var: jax.Array, count: int, replicas: list[list[int]] | None
    ) -> tuple[jax.Array, jax.Array]:
        """Mean and unbiased variance [C]: means over all groups of all replicas of [G, C]."""
        moments = jnp.stack([mean, var * (count / max(count - 1, 1))]).mean(1)
        one_group = replicas is not None and len(replicas) == 1
        if self.axis_name and not one_group:
            moments = jax.lax.pmean(moments, self.axis_name)
        return moments[0], moments[1]


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

    def convolve(
        self,
        x: jax.Array,
        features: int,
        kernel: int,
        *,
        name: str,
        stride: int = 1,
        dilation: int = 1,
        padding: int | None = None,
    ) -> jax.Array:
        """Convolves x [B, H, W, C] with `features` square kernels; call it inside a module.

        Pads by dilation · (kernel − 1) / 2 on every side, or by `padding`, as PyTorch and Caffe
        do. "SAME" would pad an even map with stride 2 on one side only, which shifts the features
        relative to the anchors. Biased only without norms: a following norm would cancel the bias.
        """
        if padding is None:
            padding = dilation * (kernel - 1) // 2
        return nn.Conv(
            features,
            (kernel, kernel),
            strides=stride,
            padding=padding,
            kernel_dilation=dilation,
            use_bias=self.norm == "none",
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            name=name,
        )(x)

    def normalize(self, x: jax.Array, train: bool, *, name: str) -> jax.Array:
        """Normalises x [B, H, W, C]; returns it unchanged if `norm` is "none"."""
        if self.norm == "none":
            return x
        return BatchNorm(
            self.axis_name, self.span, self.decay, self.epsilon, self.dtype, name=name
        )(x, train)


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
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [B, H, W, C] to the same shape; a cell of zeros stays zero."""
        scale = self.param("scale", nn.initializers.constant(20.0), x.shape[-1:], jnp.float32)
        x = x.astype(jnp.float32)
        # Added to the square, as in SSD: the square root has no gradient at 0.
        length = jnp.sqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-10)
        return (x / length * scale).astype(self.dtype)


def max_pool_3x3(x: jax.Array, stride: int) -> jax.Array:
    """Maximum over 3×3 windows, padded by 1: x [B, H, W, C] → [B, ⌈H/stride⌉, ⌈W/stride⌉, C].

    Takes maxima of shifted views, first over rows, then over columns, for the same reason as
    `max_pool_2x2`; equal maxima share their gradient.
    """
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


def max_pool_2x2(x: jax.Array, ceil: bool = False) -> jax.Array:
    """Maximum over 2×2 windows, stride 2: x [B, H, W, C] → [B, ⌊H/2⌋, ⌊W/2⌋, C].

    A reshape and a maximum, because the gradient of XLA's pooling is not deterministic on GPUs.
    Equal maxima share their gradient evenly (PyTorch gives it to the first). As in PyTorch, the
    last row or column of an odd size is dropped; with `ceil`, as in Caffe, it forms extra windows.
    """
    if ceil:
        edges = ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0))
        x = jnp.pad(x, edges, constant_values=-jnp.inf)
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))
