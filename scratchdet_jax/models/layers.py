"""Builds the layers of the networks, and what they do with maps, plain or packed."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from scratchdet_jax.models import packing
from scratchdet_jax.models.convolution import convolve
from scratchdet_jax.models.normalization import BatchNorm
from scratchdet_jax.models.packing import Map, Packed
from scratchdet_jax.models.pooling import max_pool_2x2


def _compiled(initializer: nn.initializers.Initializer) -> nn.initializers.Initializer:
    """Compiles an initialiser, once for each shape that it is called with.

    Its values are then the same to the bit alone and as part of a compiled program.
    """
    return jax.jit(initializer, static_argnums=(1, 2))


# He et al. 2015 with gain sqrt(2) and the fan-out; Glorot & Bengio 2010.
KAIMING_NORMAL = _compiled(nn.initializers.variance_scaling(2.0, "fan_out", "normal"))
XAVIER_UNIFORM = _compiled(nn.initializers.xavier_uniform())
# Caffe's "xavier": uniform with variance 1 / fan-in. Its "gaussian" of layers with BatchNorm.
CAFFE_XAVIER = _compiled(nn.initializers.variance_scaling(1.0, "fan_in", "uniform"))
CAFFE_GAUSSIAN = _compiled(nn.initializers.normal(0.01))


@dataclasses.dataclass(frozen=True)
class Layers:
    """Builds the convolutions and normalisations of one network; fields as in `BatchNorm`.

    Attributes:
        norm: "batch", or "none" for biased convolutions without normalisation.
        kernel_init: initialiser of the convolution kernels.
        packed: whether narrow maps are packed (`packing`).
    """

    norm: str = "batch"
    axis_name: str | None = None
    span: int = 0
    decay: float = 0.9
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32
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
            x = jax.tree.map(_relu, x) if relu else x
            return max_pool_2x2(x) if pool else x
        norm = BatchNorm(self.axis_name, self.span, self.decay, self.epsilon, self.dtype, name=name)
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
        layers = self.layers
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", layers.kernel_init, shape, jnp.float32).astype(layers.dtype)
        if layers.packed and packing.fits(x.shape, self.features):
            x = packing.pack(x)
        if isinstance(x, Packed):
            kernel = packing.block_diagonal(kernel)

        def apply(x: jax.Array) -> jax.Array:
            return convolve(
                x.astype(layers.dtype), kernel, self.stride, self.dilation, self.padding
            )

        y: Map = jax.tree.map(apply, x)
        if layers.norm == "none":
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            bias = bias.astype(layers.dtype)
            y = Packed(y.array + packing.per_image(bias)) if isinstance(y, Packed) else y + bias
        return y if packing.fits(y.shape, self.features) else packing.unpack(y)


def packs(layout: str, platform: str | None = None) -> bool:
    """Returns whether `config.model.layout` packs narrow maps; "auto" does so on TPUs.

    `platform` is the one that the program is compiled for, by default JAX's own.
    """
    platform = platform or jax.default_backend()
    return layout == "packed" or (layout == "auto" and platform == "tpu")


def add(x: Map, y: Map) -> Map:
    """Adds two maps of the same shape."""
    if isinstance(x, Packed) and isinstance(y, Packed):
        return Packed(x.array + y.array)
    return packing.unpack(x) + packing.unpack(y)


def relu(x: Map) -> Map:
    """Computes max(x, 0)."""
    return jax.tree.map(_relu, x)


@jax.custom_vjp
def _relu(x: jax.Array) -> jax.Array:
    """Computes a ReLU whose gradient reads the output, which is in memory, unlike most inputs."""
    return jnp.maximum(x, 0)


def _relu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    # The barrier: the gradient reads y and does not compute it again.
    y = jax.lax.optimization_barrier(jnp.maximum(x, 0))
    return y, y


def _relu_backward(y: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    return (jnp.where(y > 0, gradient, jnp.zeros((), gradient.dtype)),)


_relu.defvjp(_relu_forward, _relu_backward)


class L2Norm(nn.Module):
    """Normalises each cell's channel vector, then scales each channel (Liu et al. 2016 §3.1).

    ParseNet's normalisation, which SSD applies to conv4_3 because its values are far larger than
    those of the later source maps: x / ‖x‖₂ · scale, with an initial scale of 20. The norm is
    computed in float32.

    Attributes:
        dtype: type of the output.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Map) -> jax.Array:
        """Maps x [B, H, W, C] to the same shape; a cell of zeros stays zero."""
        scale = self.param("scale", nn.initializers.constant(20.0), x.shape[-1:], jnp.float32)
        x = packing.unpack(x).astype(jnp.float32)
        # Added to the square, as in SSD: the square root has no gradient at 0.
        length = jnp.sqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-10)
        return (x / length * scale).astype(self.dtype)
