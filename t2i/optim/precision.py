"""Number formats: which one suits the hardware, and what each choice needs to run."""

import logging
import os
from dataclasses import dataclass

import torch

from t2i.config import ConfigError

log = logging.getLogger(__name__)
MIXED_PRECISION = {"fp32": "no", "fp16": "fp16", "bf16": "bf16"}  # precision.dtype -> Accelerate's mixed_precision
COMPUTE = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WEIGHTS = ("auto", "fp32", "master", "stochastic")


@dataclass(frozen=True)
class Precision:
    """How numbers are multiplied, and how the trained weights are held."""

    dtype: str  # of products: fp32, fp16 or bf16
    weights: str  # fp32: cast at each use; master: bf16 and a float32 copy; stochastic: bf16 alone

    @property
    def name(self) -> str:
        """Identifies what changes the result; a master copy does not."""
        return f"{self.dtype}_sr" if self.weights == "stochastic" else self.dtype

    @property
    def compute(self) -> torch.dtype:
        return COMPUTE[self.dtype]


FP32 = Precision("fp32", "fp32")


def resolve_precision(dtype: str, weights: str) -> Precision:
    """Replace `auto` by what suits the machine; ConfigError if a choice can't run here.

    `dtype=auto` is bf16 where the processor multiplies it in hardware, else fp32. `weights=auto` is a master copy for
    bf16 in one process, else fp32.
    """
    dtype = _resolve_dtype(dtype)
    several_processes = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if weights == "auto":
        weights = "master" if dtype == "bf16" and not several_processes else "fp32"
    if weights not in WEIGHTS:
        raise ConfigError(f"precision.weights={weights} is not known; choose from {', '.join(WEIGHTS)}")
    if weights in ("master", "stochastic") and dtype != "bf16":
        raise ConfigError(f"precision.weights={weights} is for bf16, not for precision.dtype={dtype}; use auto")
    if weights == "master" and several_processes:
        raise ConfigError(
            "precision.weights=master is for one process: several processes average their gradients before a master "
            "copy receives them; use precision.weights=fp32, which gives the same result"
        )
    return Precision(dtype, weights)


def _resolve_dtype(dtype: str) -> str:
    if dtype == "auto":
        return "bf16" if _multiplies_bf16() else "fp32"
    if dtype not in MIXED_PRECISION:
        raise ConfigError(f"precision.dtype={dtype} is not known; choose from auto, {', '.join(MIXED_PRECISION)}")
    on_gpu = torch.cuda.is_available()
    if dtype == "fp16" and not on_gpu:
        log.warning("precision=fp16 is slow on a CPU, which has no fp16 instructions; use precision=bf16 or fp32")
    if dtype == "bf16" and not on_gpu and not _multiplies_bf16():
        log.warning("precision=bf16: this CPU has no bf16 instructions, so it is slower than precision=fp32")
    return dtype


def _multiplies_bf16() -> bool:
    """Whether the processor has bf16 instructions; a CPU without computes bf16 several times slower than fp32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = torch.cpu.get_capabilities()
    return bool(features.get("amx_tile") or features.get("avx512_bf16"))
