"""How numbers are held and multiplied: what suits the hardware, and what a choice needs to run."""

import importlib.util
import logging

import torch
from torch import nn

from t2i.config import ConfigError

log = logging.getLogger(__name__)
MIXED_PRECISION = {"fp32": "no", "fp16": "fp16", "bf16": "bf16"}  # our words to Accelerate's


def resolve_precision(dtype: str) -> str:
    """fp32, fp16 or bf16; `auto` is bf16 where the processor multiplies it in hardware, else fp32.

    A CPU without AMX or AVX512-BF16 computes bf16 several times slower than fp32.
    """
    if dtype == "auto":
        fast = (
            torch.cuda.is_bf16_supported(including_emulation=False)
            if torch.cuda.is_available()
            else _cpu_multiplies_bf16()
        )
        return "bf16" if fast else "fp32"
    if dtype not in MIXED_PRECISION:
        raise ConfigError(f"precision.dtype={dtype} is not known; choose from auto, {', '.join(MIXED_PRECISION)}")
    if dtype == "fp16" and not torch.cuda.is_available():
        raise ConfigError(
            "precision=fp16 needs a GPU (its loss scaling does not run on a CPU); use precision=bf16 or fp32"
        )
    if dtype == "bf16" and not torch.cuda.is_available() and not _cpu_multiplies_bf16():
        log.warning("precision=bf16: this CPU has no bf16 instructions, so it is slower than precision=fp32")
    return dtype


def _cpu_multiplies_bf16() -> bool:
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def resolve_attention(attention: str, dtype: str) -> str:
    """sdpa, math or xformers; `auto` is PyTorch's fused attention, but plain matrix products for bf16 on a CPU.

    There the backward pass of the fused kernel is several times slower than that of the products.
    """
    on_gpu = torch.cuda.is_available()
    if attention == "auto":
        return "math" if dtype == "bf16" and not on_gpu else "sdpa"
    if attention == "xformers" and not on_gpu:
        raise ConfigError("attention=xformers needs a GPU; use attention=auto")
    if attention == "xformers" and importlib.util.find_spec("xformers") is None:
        raise ConfigError("attention=xformers: the package is missing; pip install 't2i[xformers]'")
    return attention


def set_attention(denoiser: nn.Module, attention: str, dtype: str) -> None:
    """Compute the denoiser's attention with sdpa, math or xformers.

    The scores of some (Stable Diffusion 2.1) overflow in half precision. The fused kernels keep them in float32;
    autocast casts the products that Diffusers casts up back down.
    """
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    if attention == "math" and dtype == "fp16" and denoiser.config.get("upcast_attention"):
        raise ConfigError("attention=math overflows in fp16 with this model (upcast_attention); use attention=sdpa")
    if attention == "xformers":
        denoiser.enable_xformers_memory_efficient_attention()
    else:
        denoiser.set_attn_processor(AttnProcessor() if attention == "math" else AttnProcessor2_0())
