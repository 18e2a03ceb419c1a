"""How numbers are held and multiplied: what suits the hardware, and what a choice needs to run."""

import importlib.util
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from t2i.config import ConfigError

log = logging.getLogger(__name__)
MIXED_PRECISION = {"fp32": "no", "fp16": "fp16", "bf16": "bf16"}  # our words to Accelerate's
COMPUTE = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WEIGHTS = ("auto", "fp32", "master", "stochastic")
FEW_SCORES = 2**27  # in a layer: 4,096 latents with 8 heads, 268 MB in bf16


@dataclass(frozen=True)
class Precision:
    """How numbers are multiplied, and how the trained weights are held."""

    dtype: str  # of products: fp32, fp16 or bf16
    weights: str  # fp32: cast at each use; master: bf16 and a float32 copy; stochastic: bf16 alone

    @property
    def name(self) -> str:
        """What changes the result; a master copy does not."""
        return f"{self.dtype}_sr" if self.weights == "stochastic" else self.dtype

    @property
    def compute(self) -> torch.dtype:
        return COMPUTE[self.dtype]


FP32 = Precision("fp32", "fp32")


def resolve_precision(dtype: str, weights: str) -> Precision:
    """`dtype=auto` is bf16 where the processor multiplies it in hardware, else fp32: a CPU without AMX or AVX512-BF16
    computes bf16 several times slower. `weights=auto` is a master copy for bf16 in one process, else fp32.
    """
    dtype = _resolve_dtype(dtype)
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if weights == "auto":
        weights = "master" if dtype == "bf16" and not several else "fp32"
    if weights not in WEIGHTS:
        raise ConfigError(f"precision.weights={weights} is not known; choose from {', '.join(WEIGHTS)}")
    if weights in ("master", "stochastic") and dtype != "bf16":
        raise ConfigError(f"precision.weights={weights} is for bf16, not for precision.dtype={dtype}; use auto")
    if weights == "master" and several:
        raise ConfigError(
            "precision.weights=master is for one process: several average their gradients before a copy sees them; use "
            "precision.weights=fp32, which trains the same"
        )
    return Precision(dtype, weights)


def _resolve_dtype(dtype: str) -> str:
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

    levels: of a UNet, counted from the outermost, whose pictures are largest; the blocks further in keep theirs, which
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
