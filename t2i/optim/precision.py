"""How numbers are held and multiplied: what suits the hardware, and what a choice needs to run."""

import logging
import os
from dataclasses import dataclass

import torch

from t2i.config import ConfigError

log = logging.getLogger(__name__)
MIXED_PRECISION = {"fp32": "no", "fp16": "fp16", "bf16": "bf16"}  # our words to Accelerate's
COMPUTE = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WEIGHTS = ("auto", "fp32", "master", "stochastic")


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
