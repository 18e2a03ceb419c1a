"""What the families share: an autoencoder between pixels and latents, CLIP text encoders, and how both are loaded."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTokenizer

from t2i.config import ConfigError
from t2i.models.loading import hide_loading_bars, loading, locate


class Parts:
    """The parts of a pipeline in the Diffusers layout, each read from the subfolder of its name when it is first used.

    All but `unet` are in evaluation mode and without gradients. Weights are float32, from safetensors only.
    """

    def __init__(self, path: str, kinds: Mapping[str, type], pretrained: bool, variant: str | None):
        """path: a folder; with pretrained=False `unet` has fresh weights, drawn from torch's seed."""
        self.folder, self.kinds, self.pretrained, self.variant = Path(path), kinds, pretrained, variant
        self.device = torch.device("cpu")
        self.read: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self.read:
            with loading(self.folder):
                self.read[name] = self._load(name)
        return self.read[name]

    def _load(self, name: str) -> Any:
        kind = self.kinds[name]
        hide_loading_bars()
        if not issubclass(kind, nn.Module):
            return kind.from_pretrained(self.folder, subfolder=name)
        if name == "unet" and not self.pretrained:
            return kind.from_config(kind.load_config(self.folder, subfolder=name))
        weights = {"variant": self.variant, "use_safetensors": True, "dtype": torch.float32}
        part = kind.from_pretrained(self.folder, subfolder=name, **weights)
        if name == "unet":
            return part
        layout = torch.channels_last if name == "vae" else torch.preserve_format  # the convolutions are faster so
        return part.eval().requires_grad_(False).to(self.device, memory_format=layout)

    def config(self, name: str) -> dict[str, Any]:
        """The settings of a part, without its weights."""
        with loading(self.folder):
            return json.loads((self.folder / name / "config.json").read_text())

    def files(self, name: str) -> list[Path]:
        """What decides what a network computes: its settings and its weights."""
        found = sorted((self.folder / name).glob("*.safetensors"))
        chosen = [file for file in found if _variant(file) == self.variant]
        if not chosen:
            what = f"safetensors of variant {self.variant}" if self.variant else "safetensors"
            raise ConfigError(
                f"model.path={self.folder} can't be loaded: no {what} in {name}/; choose another model.variant, or "
                "save the pipeline again with safe_serialization=True"
            )
        return [self.folder / name / "config.json", *chosen]

    def to(self, device: torch.device) -> None:
        """Where frozen networks compute, from now on."""
        self.device = device
        for name, part in self.read.items():
            if isinstance(part, nn.Module) and name != "unet":
                part.to(device)

    def release(self) -> None:
        """Forget the networks that are not trained: they are read again when they are used again."""
        self.read = {
            name: part
            for name, part in self.read.items()
            if not isinstance(part, nn.Module) or any(weight.requires_grad for weight in part.parameters())
        }


def _variant(file: Path) -> str | None:
    """Of MODEL.safetensors none; of MODEL.fp16.safetensors or MODEL.fp16-00001-of-00002.safetensors fp16."""
    between = file.name.split(".")[1:-1]
    return between[0].partition("-")[0] if between else None


def open_pipeline(
    path: str,
    pipeline: type[DiffusionPipeline],
    kinds: Mapping[str, type],
    pretrained: bool,
    revision: str | None,
    variant: str | None,
) -> tuple[Parts, dict[str, Any]]:
    """The parts of a pipeline, of which none is read yet, and what model_index.json says.

    path: `tiny`, a local folder in the Diffusers layout, or a Hub id, whose files are fetched. ConfigError if it is of
    another kind of pipeline.
    """
    with loading(path):
        config = pipeline.load_config(locate(path), revision=revision)
    if config["_class_name"] != pipeline.__name__:
        raise ConfigError(
            f"model.path={path} holds a {config['_class_name']}, not a {pipeline.__name__}; choose the option of model "
            "that suits it (model=sd15, sd21 or sdxl)"
        )
    folder = locate(path)
    if not Path(folder).is_dir():
        unused = {name: None for name in config if not name.startswith("_") and name not in (*kinds, "scheduler")}
        with loading(path):
            folder = pipeline.download(folder, revision=revision, variant=variant, use_safetensors=True, **unused)
    parts = Parts(str(folder), kinds, pretrained, variant)
    for name, kind in kinds.items():
        if issubclass(kind, nn.Module) and (pretrained or name != "unet"):
            parts.files(name)
    return parts, config


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
