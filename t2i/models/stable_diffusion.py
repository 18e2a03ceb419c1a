"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022): UNet, one CLIP text encoder, KL autoencoder.

2.x differs in its files alone: a larger text encoder, saved without its last layer; a tokenizer that pads with `!`;
wider attention heads; and, at 768 pixels, a scheduler that says v_prediction.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from t2i.models import pipeline_parts


class StableDiffusion:
    """The seam between the loop and the family. Pixels are [B, 3, H, W] in [-1, 1]; latents [B, C, H/f, W/f]."""

    def __init__(self, parts: pipeline_parts.Parts):
        self.parts = parts

    @cached_property
    def denoiser(self) -> UNet2DConditionModel:
        return self.parts["unet"]

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        """By the names that they have in the pipeline."""
        return {"text_encoder": self.parts["text_encoder"]}

    @property
    def tokenizers(self) -> dict[str, CLIPTokenizer]:
        return {"tokenizer": self.parts["tokenizer"]}

    @property
    def image_content(self) -> list[Any]:
        """All that changes what `encode` returns: files, tokenizers and texts."""
        return self.parts.files("vae")

    @property
    def text_content(self) -> list[Any]:
        """All that changes what `embed` returns."""
        return [*self.parts.files("text_encoder"), self.parts["tokenizer"]]

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents, scaled as the denoiser expects them."""
        return pipeline_parts.encode(self.parts["vae"], pixels)

    @torch.no_grad()
    def embed(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """What the denoiser is conditioned on: {"encoder_hidden_states": [B, L, D]}; captions are cut at L tokens."""
        return self.condition(self.tokenize(captions))

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """{"input_ids": [B, L]}"""
        return {"input_ids": pipeline_parts.tokenize(self.parts["tokenizer"], captions)}

    def condition(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        """Embeds tokens; differentiable."""
        encoder = self.parts["text_encoder"]
        output = encoder(tokens["input_ids"].to(encoder.device))
        return {"encoder_hidden_states": output.last_hidden_state.float()}

    def denoise(self, x: Tensor, t: Tensor, text: dict[str, Tensor]) -> Tensor:
        """The prediction, [B, C, h, w]: the only call that is trained."""
        return self.denoiser(x, t, text["encoder_hidden_states"]).sample

    def decode(self, latents: Tensor) -> Tensor:
        return pipeline_parts.decode(self.parts["vae"], latents)

    def to(self, device: torch.device) -> None:
        self.parts.to(device)

    def release(self) -> None:
        self.parts.release()

    def pipeline(self, scheduler: SchedulerMixin) -> StableDiffusionPipeline:
        """A stock pipeline around the present weights."""
        pipeline = StableDiffusionPipeline(
            vae=self.parts["vae"],
            text_encoder=self.parts["text_encoder"],
            tokenizer=self.parts["tokenizer"],
            unet=getattr(self.denoiser, "module", self.denoiser),  # without the wrapper of data parallelism
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


PARTS = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "tokenizer": CLIPTokenizer,
}


def load(
    path: str, pretrained: bool = True, revision: str | None = None, variant: str | None = None
) -> StableDiffusion:
    """For the parameters see `pipeline_parts.Parts` and `pipeline_parts.open_pipeline`."""
    parts, _ = pipeline_parts.open_pipeline(path, StableDiffusionPipeline, PARTS, pretrained, revision, variant)
    return StableDiffusion(parts)
