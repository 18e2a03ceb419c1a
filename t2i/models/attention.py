"""How a denoiser computes its attention, and which activations it recomputes."""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from t2i.config import ConfigError
from t2i.config.out_of_memory import lacking
from t2i.models.library_logs import quiet
from t2i.runs.text import one_line

OWN = ("auto", "sdpa", "math", "xformers")  # what every model can compute its attention with
ON_CPU = ("native", "_native_math", "flex")  # of the backends that Diffusers knows by name for transformers
FEW_SCORES = 2**27  # attention scores of a layer: 4,096 latents with 8 heads, 268 MB in bf16


def resolve_attention(attention: str, dtype: str) -> str:
    """sdpa, math, by_size, xformers, or a backend of Diffusers; `auto` is sdpa, but by_size for bf16 on a CPU.

    There plain matrix products are faster than the fused kernel, in the backward pass by half.
    """
    on_gpu = torch.cuda.is_available()
    if attention not in OWN:
        _check_backend(attention, on_gpu)
    if attention == "auto":
        return "by_size" if dtype == "bf16" and not on_gpu else "sdpa"
    if attention == "xformers" and not on_gpu:
        raise ConfigError("attention=xformers needs a GPU; use attention=auto")
    if attention == "xformers" and importlib.util.find_spec("xformers") is None:
        raise ConfigError("attention=xformers needs the package xformers; pip install 't2i[xformers]'")
    return attention


def _check_backend(attention: str, on_gpu: bool) -> None:
    """ConfigError if Diffusers knows no such backend, or if it can't run here."""
    from diffusers.models import attention_dispatch

    known = [backend.value for backend in attention_dispatch.AttentionBackendName]
    if attention not in known:
        raise ConfigError(
            f"attention={attention} is not known; choose from {', '.join(OWN)}, or for a transformer from "
            f"{', '.join(known)}"
        )
    try:
        attention_dispatch._check_attention_backend_requirements(attention_dispatch.AttentionBackendName(attention))
    except (RuntimeError, ImportError, ValueError) as error:
        raise ConfigError(f"attention={attention} can't run here: {' '.join(str(error).split())}") from error
    if attention not in ON_CPU and not on_gpu:
        raise ConfigError(f"attention={attention} needs a GPU; use attention=auto")


def set_attention(denoiser: nn.Module, attention: str, dtype: str) -> None:
    """Compute the attention of a Diffusers network with what `resolve_attention` returned.

    The attention scores of some models (Stable Diffusion 2.1) overflow in half precision. The fused kernels keep the
    scores in float32; with plain products Diffusers casts them to float32, but autocast casts them back.
    """
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    network: Any = denoiser  # PyTorch's annotations do not know the methods of Diffusers
    if not isinstance(denoiser, UNet2DConditionModel):
        _set_backend(network, attention)
        return
    if attention not in (*OWN, "by_size"):
        raise ConfigError(f"attention={attention} is for transformers, and this model has a UNet; use attention=auto")
    if attention == "math" and dtype == "fp16" and network.config.get("upcast_attention"):
        raise ConfigError("attention=math overflows in fp16 with this model (upcast_attention); use attention=sdpa")
    if attention == "xformers":
        _set_xformers(network)
        return
    products, fused = AttnProcessor(), AttnProcessor2_0()
    network.set_attn_processor({"math": products, "sdpa": fused, "by_size": BySize(products, fused)}[attention])


def _set_xformers(unet: Any) -> None:
    """ConfigError if xformers was built for another torch or GPU; Diffusers tries a small product."""
    try:
        unet.enable_xformers_memory_efficient_attention()
    except (ImportError, OSError, NotImplementedError, RuntimeError, ValueError, AttributeError) as error:
        if lacking(error):
            raise
        raise ConfigError(
            f"attention=xformers can't run here ({one_line(error)}); use attention=sdpa, or the xformers that was "
            "built for your torch and GPU"
        ) from error


def _set_backend(transformer: Any, attention: str) -> None:
    """Choose how a transformer computes its attention; by_size is PyTorch's fused attention, as sdpa is."""
    if attention in ("sdpa", "by_size"):
        return
    processors = [module.processor for module in transformer.modules() if hasattr(module, "processor")]
    if not all(hasattr(processor, "_attention_backend") for processor in processors):
        raise ConfigError(f"attention={attention}: this model has PyTorch's fused attention only; use attention=sdpa")
    with quiet("diffusers.models.modeling_utils"):  # which warns that backends are experimental
        transformer.set_attention_backend({"math": "_native_math"}.get(attention, attention))


class BySize:
    """Plain matrix products for a layer with few scores, else the fused kernel, which keeps no scores in memory."""

    def __init__(self, products: Callable[..., Tensor], fused: Callable[..., Tensor]):
        self.products, self.fused = products, fused

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **rest: Any
    ) -> Tensor:
        """hidden_states: [B, N, C]. encoder_hidden_states: [B, M, D], what they attend to; None: they themselves."""
        batch, queries, _ = hidden_states.shape
        keys = (hidden_states if encoder_hidden_states is None else encoder_hidden_states).shape[1]
        few = batch * attn.heads * queries * keys <= FEW_SCORES
        return (self.products if few else self.fused)(attn, hidden_states, encoder_hidden_states, **rest)


def recompute(denoiser: nn.Module, levels: int | None) -> None:
    """Recompute activations in the backward pass instead of keeping them (Chen et al. 2016, arXiv 1604.06174).

    levels: how many levels of a UNet recompute, counted from the outermost, whose feature maps are largest. The inner
    blocks keep their activations, which are small and already freed when most gradients are allocated. None: all
    recompute.
    """
    unet: Any = denoiser
    unet.enable_gradient_checkpointing()
    if levels is None:
        return
    if not hasattr(unet, "down_blocks"):
        raise ConfigError(f"checkpoint_levels={levels} counts the levels of a UNet, and this model has none; use null")
    depth = len(unet.down_blocks)
    inner = [*unet.down_blocks[levels:], unet.mid_block, *unet.up_blocks[: max(0, depth - levels)]]
    for block in inner:
        for module in block.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = False
