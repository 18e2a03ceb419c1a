"""How a denoiser computes its attention, and which activations it recomputes."""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from t2i.config import ConfigError

FEW_SCORES = 2**27  # in a layer: 4,096 latents with 8 heads, 268 MB in bf16


def resolve_attention(attention: str, dtype: str) -> str:
    """sdpa, math, by_size or xformers; `auto` is PyTorch's fused attention, but by_size for bf16 on a CPU.

    There plain matrix products are faster than the fused kernel, in the backward pass by half.
    """
    on_gpu = torch.cuda.is_available()
    if attention == "auto":
        return "by_size" if dtype == "bf16" and not on_gpu else "sdpa"
    if attention == "xformers" and not on_gpu:
        raise ConfigError("attention=xformers needs a GPU; use attention=auto")
    if attention == "xformers" and importlib.util.find_spec("xformers") is None:
        raise ConfigError("attention=xformers: the package is missing; pip install 't2i[xformers]'")
    return attention


def set_attention(denoiser: nn.Module, attention: str, dtype: str) -> None:
    """Compute the denoiser's attention with sdpa, math, by_size or xformers.

    The scores of some (Stable Diffusion 2.1) overflow in half precision. The fused kernels keep them in float32;
    autocast casts the products that Diffusers casts up back down.
    """
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    if attention == "math" and dtype == "fp16" and denoiser.config.get("upcast_attention"):
        raise ConfigError("attention=math overflows in fp16 with this model (upcast_attention); use attention=sdpa")
    if attention == "xformers":
        denoiser.enable_xformers_memory_efficient_attention()
        return
    products, fused = AttnProcessor(), AttnProcessor2_0()
    denoiser.set_attn_processor({"math": products, "sdpa": fused, "by_size": BySize(products, fused)}[attention])


class BySize:
    """Plain matrix products for a layer of few scores; above, the fused kernel, which keeps none of them in memory."""

    def __init__(self, products: Callable[..., Tensor], fused: Callable[..., Tensor]):
        self.products, self.fused = products, fused

    def __call__(
        self, attn: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **rest: Any
    ) -> Tensor:
        """hidden_states: [B, N, C]; what they attend to, [B, M, D], is themselves unless it is given."""
        batch, queries, _ = hidden_states.shape
        keys = (hidden_states if encoder_hidden_states is None else encoder_hidden_states).shape[1]
        few = batch * attn.heads * queries * keys <= FEW_SCORES
        return (self.products if few else self.fused)(attn, hidden_states, encoder_hidden_states, **rest)


def recompute(denoiser: nn.Module, levels: int | None) -> None:
    """Recompute activations in the backward pass instead of keeping them (Chen et al. 2016, arXiv 1604.06174).

    levels: of a UNet, counted from the outermost, whose images are largest; the blocks further in keep theirs, which
    are small, and gone by the time that most gradients are there. None: all are recomputed.
    """
    denoiser.enable_gradient_checkpointing()
    if levels is None:
        return
    depth = len(denoiser.down_blocks)
    inner = [*denoiser.down_blocks[levels:], denoiser.mid_block, *denoiser.up_blocks[: max(0, depth - levels)]]
    for block in inner:
        for module in block.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = False
