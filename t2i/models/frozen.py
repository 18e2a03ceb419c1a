"""What the families share: an autoencoder between pixels and latents, CLIP text encoders, and how both are loaded."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTokenizer

from t2i.config import ConfigError
from t2i.models import hide_loading_bars, loading, locate


def load_config(path: str, pipeline: type[DiffusionPipeline], revision: str | None) -> dict[str, Any]:
    """What model_index.json says; ConfigError if it is of another kind of pipeline."""
    with loading(path):
        config = pipeline.load_config(locate(path), revision=revision)
    if config["_class_name"] != pipeline.__name__:
        raise ConfigError(
            f"model.path={path} holds a {config['_class_name']}, not a {pipeline.__name__}; choose the option of model "
            "that suits it (model=sd15, sd21 or sdxl)"
        )
    return config


def load_parts(
    path: str, kinds: Mapping[str, type], pretrained: bool, revision: str | None, variant: str | None
) -> dict[str, Any]:
    """The parts of a pipeline, each from the subfolder of its name, in float32.

    All but `unet` are in evaluation mode and without gradients; with pretrained=False `unet` has fresh weights, drawn
    from torch's seed. Weights are read from safetensors only.
    """
    hide_loading_bars()
    folder = locate(path)
    weights = {"variant": variant, "use_safetensors": True, "dtype": torch.float32}
    parts = {}
    with loading(path):
        for name, kind in kinds.items():
            source = {"subfolder": name, "revision": revision}
            if name == "unet" and not pretrained:
                parts[name] = kind.from_config(kind.load_config(folder, **source))
            else:
                parts[name] = kind.from_pretrained(folder, **source, **(weights if issubclass(kind, nn.Module) else {}))
            if name != "unet" and issubclass(kind, nn.Module):
                parts[name].eval().requires_grad_(False)
    return parts


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents of [B, 3, H, W] in [-1, 1], scaled as the denoiser expects them."""
    posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    shift, scale = _shift_and_scale(vae)
    return (posterior.mean.float() - shift) * scale, posterior.std.float() * scale


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Pixels, [B, 3, H, W], about in [-1, 1]."""
    shift, scale = _shift_and_scale(vae)
    return vae.decode((latents / scale + shift).to(vae.device, vae.dtype)).sample.float()


def _shift_and_scale(vae: AutoencoderKL) -> tuple[float, float]:
    return vae.config.get("shift_factor") or 0.0, vae.config.scaling_factor


def tokenize(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """[B, L], padded to the tokenizer's length and cut at it."""
    length = tokenizer.model_max_length
    return tokenizer(
        list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
