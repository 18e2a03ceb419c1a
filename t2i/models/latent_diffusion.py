"""What the families share: a denoiser of latents, an autoencoder between pixels and latents, CLIP text encoders."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTokenizer

from t2i.models.model import Content
from t2i.models.pipeline_parts import DENOISER, PipelineParts


class LatentDiffusion(ABC):
    """The part of `Model` that does not depend on the family; `denoise` and `pipeline` do, and so does `condition`."""

    def __init__(self, parts: PipelineParts):
        self.parts = parts

    @property
    def denoiser(self) -> nn.Module:
        return self.parts[DENOISER]

    @denoiser.setter
    def denoiser(self, network: nn.Module) -> None:
        self.parts[DENOISER] = network

    @property
    def patch_size(self) -> int:
        return 1

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        return {name: self.parts[name] for name in self.parts.names("text_encoder")}

    @property
    def tokenizers(self) -> dict[str, CLIPTokenizer]:
        return {name: self.parts[name] for name in self.parts.names("tokenizer")}

    @property
    def image_content(self) -> list[Content]:
        return [*self.parts.files("vae")]

    @property
    def text_content(self) -> list[Content]:
        files = [file for name in self.parts.names("text_encoder") for file in self.parts.files(name)]
        return [*files, *self.tokenizers.values()]

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        vae, (shift, scale) = self.parts["vae"], self._shift_and_scale()
        posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
        return (posterior.mean.float() - shift) * scale, posterior.std.float() * scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        vae, (shift, scale) = self.parts["vae"], self._shift_and_scale()
        return vae.decode((latents / scale + shift).to(vae.device, vae.dtype)).sample.float()

    def _shift_and_scale(self) -> tuple[float, float]:
        config = self.parts["vae"].config
        return config.get("shift_factor") or 0.0, config.scaling_factor

    @torch.no_grad()
    def embed(self, captions: Sequence[str]) -> dict[str, Tensor]:
        return self.condition(self.tokenize(captions))

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """{"input_ids": [B, L]}, and "input_ids_2" where there is a second tokenizer."""
        return {
            name.replace("tokenizer", "input_ids"): token_ids(tokenizer, captions)
            for name, tokenizer in self.tokenizers.items()
        }

    @abstractmethod
    def condition(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]: ...

    def to(self, device: torch.device) -> None:
        self.parts.to(device)

    def release(self) -> None:
        self.parts.release()

    def stock_pipeline(self, pipeline_class: Any, **settings: Any) -> DiffusionPipeline:
        """A pipeline of Diffusers around the current weights; settings: scheduler, and what is special to the class."""
        for tokenizer in self.tokenizers.values():
            _forget_calls(tokenizer)
        frozen = {name: self.parts[name] for name in self.parts.classes if name != DENOISER}
        denoiser = getattr(self.denoiser, "module", self.denoiser)  # without the wrapper of data parallelism
        pipeline = pipeline_class(**frozen, unet=denoiser, **settings)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def _forget_calls(tokenizer: CLIPTokenizer) -> None:
    """Reset padding and truncation, which the last call has set and which would be saved in tokenizer.json."""
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()


def token_ids(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """[B, L], padded to the tokenizer's length and cut at it."""
    length = tokenizer.model_max_length
    return tokenizer(
        list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
