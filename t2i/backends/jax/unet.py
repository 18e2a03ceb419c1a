"""The UNet of Stable Diffusion 1.x, 2.x and XL as a function of weights under Diffusers' names.

What is read from a pipeline is trained, and what is trained is written, without conversion. The blocks are read from
the names of the weights.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from t2i.backends.jax.attention import Attend, by_xla
from t2i.backends.jax.layers import Part, attention, conv, group_norm, layer_norm, linear, sinusoids, upsample
from t2i.backends.jax.network import Network
from t2i.config import ConfigError

Layer = Callable[..., Array]  # of the image, the embedding of the time, the captions and what skipped the inner levels
# What names and shapes of the weights say, and what is only a limit of the number format (upcast_attention).
IN_THE_WEIGHTS = (
    *("sample_size", "in_channels", "out_channels", "block_out_channels", "layers_per_block", "cross_attention_dim"),
    *("transformer_layers_per_block", "projection_class_embeddings_input_dim", "use_linear_projection"),
    *("reverse_transformer_layers_per_block", "upcast_attention"),
)
READ = ("norm_num_groups", "norm_eps", "attention_head_dim", "flip_sin_to_cos", "freq_shift", "addition_time_embed_dim")
CHOICES = {
    "down_block_types": {"CrossAttnDownBlock2D", "DownBlock2D"},
    "up_block_types": {"CrossAttnUpBlock2D", "UpBlock2D"},
    "addition_embed_type": {None, "text_time"},
}


@dataclass(frozen=True)
class UNet(Network):
    """The settings of a UNet that its weights don't tell; a function of weights, latents, times and conditioning."""

    groups: int  # of the group norms
    eps: float
    heads: tuple[int, ...]  # of each level's attention, from the largest images on
    flip_sin_to_cos: bool
    freq_shift: float
    time_ids_dim: int | None  # channels of each of XL's time ids
    scales: Mapping[str, float]  # alpha / rank of the layers that LoRA adapts, by their names
    recomputed: int | None = 0  # levels, as for `t2i.models.attention.recompute`; None: all

    arguments = MappingProxyType({"sample": "x", "timestep": "time"})

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("encoder_hidden_states", *(("text_embeds", "time_ids") if self.time_ids_dim else ()))

    def __call__(
        self,
        weights: Mapping[str, Array],
        x: Array,
        time: Array,
        text: Mapping[str, Array],
        attend: Attend = by_xla,
    ) -> Array:
        """The prediction in float32, [B, C, h, w]. x: [B, C, h, w], time: [B], text: see `inputs`."""
        unet, context = Part(weights, self.scales, attend), text["encoder_hidden_states"]
        emb = self._embedding(unet, time, text)
        depth = len(self.heads)
        hidden = conv(unet["conv_in"], x.transpose(0, 2, 3, 1))
        skips = [hidden]
        for level, block in enumerate(unet.each("down_blocks")):
            for layer in self._layers(block, level):
                hidden = layer(hidden, emb, context)
                skips.append(hidden)
            for each in block.each("downsamplers"):
                hidden = conv(each["conv"], hidden, stride=2)
                skips.append(hidden)
        for layer in self._middle(unet["mid_block"]):
            hidden = layer(hidden, emb, context)
        for index, block in enumerate(unet.each("up_blocks")):
            for layer in self._layers(block, depth - 1 - index):
                hidden = layer(hidden, emb, context, skips.pop())
            for each in block.each("upsamplers"):
                hidden = conv(each["conv"], upsample(hidden, *skips[-1].shape[1:3]))
        hidden = jax.nn.silu(group_norm(unet["conv_norm_out"], hidden, self.groups, self.eps))
        return conv(unet["conv_out"], hidden).transpose(0, 3, 1, 2).astype(jnp.float32)

    def _embedding(self, unet: Part, time: Array, text: Mapping[str, Array]) -> Array:
        """Of the time, and of XL's pooled captions and sizes, [B, D]."""
        channels = unet["time_embedding.linear_1"].width
        emb = _embedded(unet["time_embedding"], sinusoids(time, channels, self.flip_sin_to_cos, self.freq_shift))
        if self.time_ids_dim is None:
            return emb
        ids = text["time_ids"]
        waves = sinusoids(ids.reshape(-1), self.time_ids_dim, self.flip_sin_to_cos, self.freq_shift)
        added = jnp.concatenate([text["text_embeds"].astype(jnp.float32), waves.reshape(len(ids), -1)], axis=-1)
        return emb + _embedded(unet["add_embedding"], added)

    def _layers(self, block: Part, level: int) -> list[Layer]:
        """What a block of a level does, one function for each of its residual blocks."""
        transformers, recomputes = list(block.each("attentions")), self.recomputed is None or level < self.recomputed
        residuals = enumerate(block.each("resnets"))
        return [self._layer(each, transformers[i : i + 1], level, recomputes) for i, each in residuals]

    def _middle(self, block: Part) -> list[Layer]:
        first, *others = block.each("resnets")
        level, recomputes = len(self.heads) - 1, self.recomputed is None
        pairs = zip(block.each("attentions"), others, strict=True)
        layers = [self._layer(first, [], level, recomputes)]
        for transformer, residual in pairs:
            layers.append(self._attending(transformer, level, recomputes))
            layers.append(self._layer(residual, [], level, recomputes))
        return layers

    def _layer(self, residual: Part, transformers: list[Part], level: int, recomputes: bool) -> Layer:
        """A residual block, and the transformer behind it if there is one."""
        convolve = _kept_or_not(partial(_residual, residual, self.groups, self.eps), recomputes)
        attend = [self._attending(each, level, recomputes) for each in transformers]

        def layer(x: Array, emb: Array, context: Array, *skip: Array) -> Array:
            x = convolve(emb, x, *skip)
            for each in attend:
                x = each(x, emb, context)
            return x

        return layer

    def _attending(self, part: Part, level: int, recomputes: bool) -> Layer:
        """A transformer of a level, each of whose blocks is recomputed by itself."""
        heads, groups = self.heads[level], self.groups
        blocks = [_kept_or_not(_block(each, heads), recomputes) for each in part.each("transformer_blocks")]
        enter = _kept_or_not(lambda x: _entered(part, x, groups), recomputes)

        def attend(x: Array, emb: Array, context: Array) -> Array:
            hidden = enter(x)
            for block in blocks:
                hidden = block(hidden, context)
            return x + _projected(part["proj_out"], hidden).reshape(x.shape)

        return attend


def _kept_or_not(function: Callable[..., Array], recomputes: bool) -> Callable[..., Array]:
    """The function, whose inner results the backward pass recomputes or finds in memory."""
    return jax.checkpoint(function) if recomputes else function


def _residual(part: Part, groups: int, eps: float, emb: Array, *x: Array) -> Array:
    """Two convolutions beside the identity; the embedding of the time is added between them. x: one after another."""
    x = jnp.concatenate(x, axis=-1)
    hidden = conv(part["conv1"], jax.nn.silu(group_norm(part["norm1"], x, groups, eps)))
    hidden = hidden + linear(part["time_emb_proj"], jax.nn.silu(emb))[:, None, None, :]
    hidden = conv(part["conv2"], jax.nn.silu(group_norm(part["norm2"], hidden, groups, eps)))
    return hidden + (conv(part["conv_shortcut"], x) if "conv_shortcut" in part else x)


def _entered(part: Part, x: Array, groups: int) -> Array:
    """Pixels as tokens, [B, H·W, C]."""
    hidden = group_norm(part["norm"], x, groups, 1e-6)
    return _projected(part["proj_in"], hidden.reshape(len(x), -1, x.shape[-1]))


def _projected(part: Part, tokens: Array) -> Array:
    """A linear layer on tokens, [B, N, C]; that of 1.x is a convolution of 1 × 1."""
    return conv(part, tokens[:, None])[:, 0] if part.is_conv else linear(part, tokens)


def _block(part: Part, heads: int) -> Callable[[Array, Array], Array]:
    """Attention to the image, attention to the caption, and a gated feed-forward network (Shazeer 2020)."""

    def block(x: Array, context: Array) -> Array:
        normal = layer_norm(part["norm1"], x)
        x = x + attention(part["attn1"], normal, normal, heads)
        x = x + attention(part["attn2"], layer_norm(part["norm2"], x), context, heads)
        hidden, gate = jnp.split(linear(part["ff.net.0.proj"], layer_norm(part["norm3"], x)), 2, axis=-1)
        return x + linear(part["ff.net.2"], hidden * jax.nn.gelu(gate, approximate=False))

    return block


def _embedded(part: Part, x: Array) -> Array:
    return linear(part["linear_2"], jax.nn.silu(linear(part["linear_1"], x)))


def unet_of(config: Mapping[str, Any], scales: Mapping[str, float], recomputed: int | None = 0) -> UNet:
    """The function for a UNet of Diffusers with this config; ConfigError for settings that it does not know."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    defaults = inspect.signature(UNet2DConditionModel.__init__).parameters
    for name, value in config.items():
        if name.startswith("_") or name in (*IN_THE_WEIGHTS, *READ):
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        known = CHOICES.get(name, {defaults[name].default} if name in defaults else set())
        if not set(values) <= known:
            raise ConfigError(
                f"backend=jax knows the UNets of Stable Diffusion 1.x, 2.x and XL; in the config of this one is "
                f"{name}={value}; use backend=torch"
            )
    heads, depth = config["attention_head_dim"], len(config["down_block_types"])
    return UNet(
        groups=config["norm_num_groups"],
        eps=config["norm_eps"],
        heads=tuple(heads) if isinstance(heads, (list, tuple)) else (heads,) * depth,
        flip_sin_to_cos=config["flip_sin_to_cos"],
        freq_shift=config["freq_shift"],
        time_ids_dim=config["addition_time_embed_dim"] if config["addition_embed_type"] else None,
        scales=scales,
        recomputed=recomputed,
    )
