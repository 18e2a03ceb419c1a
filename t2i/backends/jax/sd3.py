"""The transformer of Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv 2403.03206) as a function of its weights.

As in `unet.py`, under Diffusers' names; the blocks, and which of them attend to the image twice, are read from these.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from t2i.backends.jax.attention import Attend, by_xla
from t2i.backends.jax.layers import Part, conv, linear, normalized, rms_norm, sinusoids
from t2i.backends.jax.network import Network
from t2i.config import ConfigError

EPS = 1e-6  # of all norms
TIME_CHANNELS = 256
IN_THE_WEIGHTS = (
    *("sample_size", "patch_size", "in_channels", "num_layers", "attention_head_dim", "joint_attention_dim"),
    *("caption_projection_dim", "pooled_projection_dim", "out_channels", "pos_embed_max_size"),
    "dual_attention_layers",
)


@dataclass(frozen=True)
class SD3(Network):
    """The settings that the weights don't tell; a function of weights, latents, times and conditioning."""

    heads: int
    scales: Mapping[str, float]  # alpha / rank of the layers that LoRA adapts, by their names
    recomputes: bool = False  # whether the backward pass recomputes each block

    arguments = MappingProxyType({"hidden_states": "x", "timestep": "time", "pooled_projections": "pooled"})
    inputs = ("encoder_hidden_states", "pooled")

    def __call__(
        self,
        weights: Mapping[str, Array],
        x: Array,
        time: Array,
        text: Mapping[str, Array],
        attend: Attend = by_xla,
    ) -> Array:
        net = Part(weights, self.scales, attend)
        tokens = _patches(net["pos_embed"], x)
        emb = _embedded(net["time_text_embed.timestep_embedder"], sinusoids(time, TIME_CHANNELS, flip=True, shift=0))
        emb = emb + _embedded(net["time_text_embed.text_embedder"], text["pooled"])
        context = linear(net["context_embedder"], text["encoder_hidden_states"])
        for part in net.each("transformer_blocks"):
            block = jax.checkpoint(self._block(part)) if self.recomputes else self._block(part)
            tokens, context = block(tokens, context, emb)
        scale, shift = _modulation(net["norm_out.linear"], emb, 2)
        patches = linear(net["proj_out"], _modulated(tokens, scale, shift))
        return _image(patches, x.shape, net["pos_embed.proj"].base.weight.shape[-1]).astype(jnp.float32)

    def _block(self, part: Part) -> Any:
        """Joint attention of image and caption, and a feed-forward network for each, modulated by the embedding."""

        twice, last = "attn2" in part, "ff_context" not in part

        def block(x: Array, context: Array, emb: Array) -> tuple[Array, Array]:
            shift, scale, gate, *of_ff = _modulation(part["norm1.linear"], emb, 9 if twice else 6)
            shift_ff, scale_ff, gate_ff, *of_second = of_ff
            shift_c, scale_c, *of_context = _modulation(part["norm1_context.linear"], emb, 2 if last else 6)
            if last:
                scale_c, shift_c = shift_c, scale_c  # here Diffusers has them in this order
            before = normalized(x, (-1,), x.shape, EPS).astype(x.dtype)
            mixed, mixed_context = self._joint(
                part["attn"], before * (1 + scale) + shift, _modulated(context, scale_c, shift_c)
            )
            x = x + gate * linear(part["attn.to_out.0"], mixed)
            if twice:
                shift, scale, gate = of_second
                again, _ = self._joint(part["attn2"], before * (1 + scale) + shift)
                x = x + gate * linear(part["attn2.to_out.0"], again)
            x = x + gate_ff * _feed_forward(part["ff"], _modulated(x, scale_ff, shift_ff))
            if last:
                return x, context
            gate, shift_ff, scale_ff, gate_ff = of_context
            context = context + gate * linear(part["attn.to_add_out"], mixed_context)
            return x, context + gate_ff * _feed_forward(part["ff_context"], _modulated(context, scale_ff, shift_ff))

        return block

    def _joint(self, part: Part, x: Array, context: Array | None = None) -> tuple[Array, Array]:
        """Attention among the tokens of the image and of the caption, for which there are layers of their own."""
        names = (("to_q", "norm_q"), ("to_k", "norm_k"), ("to_v", ""))
        parts = [[self._heads(part, name, norm, x) for name, norm in names]]
        if context is not None:
            names = (("add_q_proj", "norm_added_q"), ("add_k_proj", "norm_added_k"), ("add_v_proj", ""))
            parts.append([self._heads(part, name, norm, context) for name, norm in names])
        query, key, value = (jnp.concatenate(each, axis=1) for each in zip(*parts, strict=True))
        mixed = part.attend(query, key, value)
        mixed = mixed.reshape(*mixed.shape[:2], -1)
        return mixed[:, : x.shape[1]], mixed[:, x.shape[1] :]

    def _heads(self, part: Part, name: str, norm: str, x: Array) -> Array:
        """[B, N, heads, C / heads]."""
        y = linear(part[name], x)
        y = y.reshape(*y.shape[:2], self.heads, -1)
        return rms_norm(part[norm], y, EPS) if norm and norm in part else y


def _patches(part: Part, x: Array) -> Array:
    """Squares of latents as tokens, [B, N, C], with their places, which are cut from the middle of a square table."""
    tokens = conv(part["proj"], x.transpose(0, 2, 3, 1), stride=part["proj"].base.weight.shape[-1])
    height, width = tokens.shape[1:3]
    table = part.weights[f"{part.name}.pos_embed"]
    side = round(table.shape[1] ** 0.5)
    top, left = (side - height) // 2, (side - width) // 2
    places = table.reshape(side, side, -1)[top : top + height, left : left + width]
    return (tokens + places.astype(tokens.dtype)).reshape(len(x), height * width, -1)


def _image(patches: Array, shape: tuple[int, ...], patch: int) -> Array:
    """The inverse: [B, C, h, w] of tokens [B, N, patch · patch · C]."""
    height, width = shape[2] // patch, shape[3] // patch
    squares = patches.reshape(len(patches), height, width, patch, patch, -1)
    return jnp.einsum("nhwpqc->nchpwq", squares).reshape(len(patches), -1, height * patch, width * patch)


def _modulation(part: Part, emb: Array, count: int) -> list[Array]:
    """Shifts, scales and gates, each [B, 1, C]."""
    return jnp.split(linear(part, jax.nn.silu(emb))[:, None], count, axis=-1)


def _modulated(x: Array, scale: Array, shift: Array) -> Array:
    return normalized(x, (-1,), x.shape, EPS).astype(x.dtype) * (1 + scale) + shift


def _feed_forward(part: Part, x: Array) -> Array:
    return linear(part["net.2"], jax.nn.gelu(linear(part["net.0.proj"], x), approximate=True))


def _embedded(part: Part, x: Array) -> Array:
    return linear(part["linear_2"], jax.nn.silu(linear(part["linear_1"], x)))


def sd3_of(config: Mapping[str, Any], scales: Mapping[str, float], recomputed: int | None = 0) -> SD3:
    """The function for a transformer with this config; ConfigError for settings that it does not know."""
    known = {"num_attention_heads": config["num_attention_heads"], "qk_norm": config["qk_norm"]}
    if known["qk_norm"] not in (None, "rms_norm"):
        raise ConfigError(f"backend=jax has no qk_norm={known['qk_norm']} for a transformer; use backend=torch")
    for name, value in config.items():
        if not name.startswith("_") and name not in (*IN_THE_WEIGHTS, *known):
            raise ConfigError(f"backend=jax does not know {name}={value} of this transformer; use backend=torch")
    return SD3(heads=config["num_attention_heads"], scales=scales, recomputes=recomputed is None)
