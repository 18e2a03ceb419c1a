"""Which of Diffusers' networks there are in JAX."""

from collections.abc import Mapping
from typing import Any

from t2i.backends.jax.network import Network
from t2i.backends.jax.sd3 import sd3_of
from t2i.backends.jax.unet import unet_of
from t2i.config import ConfigError

KINDS = {"UNet2DConditionModel": unet_of, "SD3Transformer2DModel": sd3_of}


def network_of(denoiser: Any, scales: Mapping[str, float], recomputed: int | None = 0) -> Network:
    """The function for a network of Diffusers. ConfigError if there is none.

    scales: alpha / rank of the layers that LoRA adapts, by their names. recomputed: how many levels recompute their
    activations, as for `t2i.models.attention.recompute`; None: all.
    """
    kind = type(denoiser).__name__
    if kind not in KINDS:
        raise ConfigError(f"backend=jax has no {kind}; use backend=torch")
    return KINDS[kind](denoiser.config, scales, recomputed)
