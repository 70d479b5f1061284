"""Layers shared by the networks: BatchNorm over a chosen span, convolutions, pooling."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from scratchdet_jax.errors import UserError

# He et al. 2015, gain sqrt(2), counted over the outputs; Glorot & Bengio 2010.
KAIMING_NORMAL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
XAVIER_UNIFORM = nn.initializers.xavier_uniform()


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) whose statistics cover `span` images.

    In training the statistics are those of `span` consecutive images of the *global* batch, that
    is of all replicas of the mapped axis `axis_name` in order; `span = 0` is the whole of it.
    Otherwise the running averages are used, and no axis needs to be bound (as in `init`).

    Why not `flax.linen.BatchNorm`: it can group replicas (`axis_index_groups`) but then each group
    keeps running averages of its own, so a state that is meant to be replicated is not, and its
    checkpoint depends on which replica wrote it. Nor can it split the images of one replica.
    Here the running averages take the mean over all groups and are the same on every replica.

    Statistics are float32 whatever `dtype` is, and take one pass over the activations: mean and
    mean square about the running mean, which keeps the cancellation in E[x²] − E[x]² harmless
    where the mean is large against the deviation. The running variance is the unbiased one
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
            UserError: in training, if the batch cannot be cut into groups of `span` images.
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
        """Groups within the replica's `local` images, and the replicas that share each group.

        Replicas are None where a group stays within one replica.
        """
        axis_size = jax.lax.axis_size(self.axis_name) if self.axis_name else 1
        total = local * axis_size
        span = self.span or total
        within = span <= local
        if (local % span if within else span % local or total % span) != 0:
            raise UserError(
                f"config.model.norm_span = {span} does not fit a global batch of {total} images, "
                f"{local} on each of {axis_size} devices: use 0 (the whole batch), a divisor of "
                f"{local}, or a multiple of {local} that divides {total}."
            )
        if within:
            return local // span, None
        width = span // local
        return 1, [list(range(i, i + width)) for i in range(0, axis_size, width)]

    def _statistics(
        self, x: jax.Array, shift: jax.Array, replicas: list[list[int]] | None
    ) -> tuple[jax.Array, jax.Array]:
        """Mean and biased variance [G, C] of each group of x [G, N, ..., C], float32."""
        shift = jax.lax.stop_gradient(shift)
        axes = tuple(range(1, x.ndim - 1))
        centred = x - shift
        moments = jnp.stack([centred.mean(axes), jnp.square(centred).mean(axes)])
        if replicas is not None:
            # One group is the whole axis: the plain reduction is the one every backend is best at.
            subgroups = replicas if len(replicas) > 1 else None
            moments = jax.lax.pmean(moments, self.axis_name, axis_index_groups=subgroups)
        mean, mean_square = moments
        # Rounding can leave a constant channel a little below zero.
        return mean + shift, jnp.maximum(mean_square - jnp.square(mean), 0.0)

    def _average(
        self, mean: jax.Array, var: jax.Array, count: int, replicas: list[list[int]] | None
    ) -> tuple[jax.Array, jax.Array]:
        """Mean over all groups of all replicas of mean and unbiased variance [G, C] → [C]."""
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
        """Convolves x [B, H, W, C] with `features` square kernels; to be called in a module.

        Pads by dilation · (kernel − 1) / 2 on every side, or by `padding`, as PyTorch and Caffe
        do; "SAME" would pad an even map with stride 2 on one side only and shift the features
        against the anchors.
        Biased only in a network without norms: a norm that follows would undo the bias.
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
        """Normalises x [B, H, W, C], or returns it as it is if `norm` is "none"."""
        if self.norm == "none":
            return x
        return BatchNorm(
            self.axis_name, self.span, self.decay, self.epsilon, self.dtype, name=name
        )(x, train)


class L2Norm(nn.Module):
    """Scales the channel vector of every cell to a learned length a channel (Liu et al. 2016 §3.1).

    ParseNet's normalisation as SSD puts it on conv4_3, whose values are far larger than those of
    the later source maps: x / ‖x‖₂ · scale, with scale 20 at first. The norm is float32.

    Attributes:
        dtype: type of the output.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [B, H, W, C] to the same shape; a cell of zeros stays zero."""
        scale = self.param("scale", nn.initializers.constant(20.0), x.shape[-1:], jnp.float32)
        x = x.astype(jnp.float32)
        # Added to the square (as SSD does): the root has no gradient at 0.
        length = jnp.sqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-10)
        return (x / length * scale).astype(self.dtype)


def max_pool_3x3(x: jax.Array, stride: int) -> jax.Array:
    """Maximum over 3×3 windows, padded by 1: x [B, H, W, C] → [B, ⌈H/stride⌉, ⌈W/stride⌉, C].

    Maxima of shifted views, first over rows, then over columns, for the reason of `max_pool_2x2`;
    equal maxima share their gradient.
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

    A reshape and a maximum: the gradient of XLA's pooling is not deterministic on GPUs. Equal
    maxima share their gradient evenly (PyTorch gives it to the first). As in PyTorch, the last row
    or column of an odd size is dropped; with `ceil`, as in Caffe, it makes windows of its own.
    """
    if ceil:
        edges = ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0))
        x = jnp.pad(x, edges, constant_values=-jnp.inf)
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))
