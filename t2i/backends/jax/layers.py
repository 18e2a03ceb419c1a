"""Layers as functions of weights under PyTorch's names and in PyTorch's shapes. Images are [B, H, W, C] in between.

Products are in the type of the weights, as with autocast: a network whose matrices are bfloat16 multiplies in bfloat16.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import Array

from t2i.backends.jax.attention import Attend

ADAPTED, DOWN, UP = "base_layer", "lora_A.default", "lora_B.default"  # peft's names in a layer that LoRA adapts


@dataclass(frozen=True)
class Part:
    """A module of a network: its weights are those whose names begin with its own."""

    weights: Mapping[str, Array]
    scales: Mapping[str, float]  # alpha / rank of the layers that LoRA adapts, by their names
    attend: Attend  # the attention of query, key and value
    name: str = ""

    def __getitem__(self, name: str) -> "Part":
        return replace(self, name=f"{self.name}.{name}" if self.name else name)

    def __contains__(self, name: str) -> bool:
        inner = f"{self[name].name}."
        return any(each.startswith(inner) for each in self.weights)

    def each(self, name: str) -> Iterator["Part"]:
        """The parts of a list of modules, in order."""
        index = 0
        while f"{name}.{index}" in self:
            yield self[f"{name}.{index}"]
            index += 1

    @property
    def weight(self) -> Array:
        return self.weights[f"{self.name}.weight"]

    @property
    def bias(self) -> Array | None:
        return self.weights.get(f"{self.name}.bias")

    @property
    def scale(self) -> float:
        return self.scales[self.name]

    @property
    def base(self) -> "Part":
        """The layer itself, without the adapter that it may have."""
        adapted = ADAPTED in self
        return self[ADAPTED] if adapted else self

    @property
    def width(self) -> int:
        """The number of inputs of a linear layer."""
        return self.base.weight.shape[1]

    @property
    def is_conv(self) -> bool:
        return self.base.weight.ndim == 4


def linear(part: Part, x: Array) -> Array:
    """W x + b on the last axis, and alpha / rank · B A x where LoRA adapts the layer. W: [out, in]."""
    if ADAPTED in part:
        return linear(part[ADAPTED], x) + linear(part[UP], linear(part[DOWN], x)) * part.scale
    weight, bias = part.weight, part.bias
    y = jnp.einsum("...i,oi->...o", x.astype(weight.dtype), weight)
    return y if bias is None else y + bias.astype(y.dtype)


def conv(part: Part, x: Array, stride: int = 1) -> Array:
    """A convolution that keeps height and width at stride 1. W: [out, in, height, width]."""
    if ADAPTED in part:
        return conv(part[ADAPTED], x, stride) + conv(part[UP], conv(part[DOWN], x, stride)) * part.scale
    weight, bias = part.weight, part.bias
    padding = [((size - 1) // 2, (size - 1) // 2) for size in weight.shape[2:]]
    layout = ("NHWC", "OIHW", "NHWC")
    y = jax.lax.conv_general_dilated(
        x.astype(weight.dtype), weight, (stride, stride), padding, dimension_numbers=layout
    )
    return y if bias is None else y + bias.astype(y.dtype)


def layer_norm(part: Part, x: Array, eps: float = 1e-5) -> Array:
    return _scaled(part, normalized(x, (-1,), x.shape, eps), x)


def rms_norm(part: Part, x: Array, eps: float) -> Array:
    """x divided by the root of its mean square over the last axis (Zhang & Sennrich 2019)."""
    values = x.astype(jnp.float32)
    return _scaled(part, values * jax.lax.rsqrt(jnp.square(values).mean(-1, keepdims=True) + eps), x)


def group_norm(part: Part, x: Array, groups: int, eps: float) -> Array:
    """x: [B, H, W, C] or [B, N, C]; each group of channels has zero mean and unit variance over the image."""
    batch, channels = x.shape[0], x.shape[-1]
    grouped = (batch, -1, groups, channels // groups)
    return _scaled(part, normalized(x, (1, 3), grouped, eps), x)


def normalized(x: Array, axes: tuple[int, ...], shape: tuple[int, ...], eps: float) -> Array:
    """Zero mean and unit variance over some axes of x in this shape; in float32, whatever the type of x."""
    values = x.astype(jnp.float32).reshape(shape)
    centred = values - values.mean(axes, keepdims=True)
    return (centred * jax.lax.rsqrt(jnp.square(centred).mean(axes, keepdims=True) + eps)).reshape(x.shape)


def _scaled(part: Part, normal: Array, x: Array) -> Array:
    """Scaled and shifted by the weights, in the type of x."""
    bias = part.bias
    scaled = normal * part.weight.astype(jnp.float32)
    return (scaled if bias is None else scaled + bias.astype(jnp.float32)).astype(x.dtype)


def attention(part: Part, x: Array, context: Array, heads: int) -> Array:
    """Attention of x, [B, N, C], to the context, [B, M, D]. The scores are float32, also between bfloat16."""
    query, key, value = linear(part["to_q"], x), linear(part["to_k"], context), linear(part["to_v"], context)
    split = [each.reshape(*each.shape[:2], heads, -1) for each in (query, key, value)]
    mixed = part.attend(*split)
    return linear(part["to_out.0"], mixed.reshape(query.shape))


def upsample(x: Array, height: int, width: int) -> Array:
    """The nearest of the pixels of x, [B, h, w, C], for each of height × width."""
    for axis, size in ((1, height), (2, width)):
        if size == 2 * x.shape[axis]:
            x = jnp.repeat(x, 2, axis)
        else:
            x = jnp.take(x, jnp.arange(size) * x.shape[axis] // size, axis)
    return x


def sinusoids(time: Array, channels: int, flip: bool, shift: float) -> Array:
    """[B, channels] of times [B] (Vaswani et al. 2017), as Diffusers' get_timestep_embedding. flip: cosines first."""
    half = channels // 2
    rates = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - shift))
    angles = time.astype(jnp.float32)[:, None] * rates
    waves = (jnp.cos(angles), jnp.sin(angles)) if flip else (jnp.sin(angles), jnp.cos(angles))
    return jnp.concatenate(waves, axis=-1)
