"""Stable Diffusion XL (Podell et al. 2023, arXiv 2307.01952): UNet, two CLIP text encoders, KL autoencoder.

Beside the caption it is told the size of the original image, where the crop was taken, and the size of the crop.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from t2i.models import pipeline_parts


class StableDiffusionXL:
    """The seam between the loop and the family. Pixels are [B, 3, H, W] in [-1, 1]; latents [B, C, H/f, W/f].

    The autoencoder stays in float32: its activations overflow in half precision.
    """

    def __init__(self, parts: pipeline_parts.Parts, zeros_for_empty: bool):
        """zeros_for_empty: the empty caption is embedded as zeros, as the pipeline does where it guides."""
        self.parts, self.zeros_for_empty = parts, zeros_for_empty

    @cached_property
    def denoiser(self) -> UNet2DConditionModel:
        return self.parts["unet"]

    @cached_property
    def pixels_per_latent(self) -> int:
        return 2 ** (len(self.parts.config("vae")["block_out_channels"]) - 1)

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        """By the names that they have in the pipeline."""
        return {name: self.parts[name] for name in ("text_encoder", "text_encoder_2")}

    @property
    def tokenizers(self) -> dict[str, CLIPTokenizer]:
        return {name: self.parts[name] for name in ("tokenizer", "tokenizer_2")}

    @property
    def image_content(self) -> list[Any]:
        """All that changes what `encode` returns: files, tokenizers and texts."""
        return self.parts.files("vae")

    @property
    def text_content(self) -> list[Any]:
        """All that changes what `embed` returns."""
        files = [*self.parts.files("text_encoder"), *self.parts.files("text_encoder_2")]
        return [*files, *self.tokenizers.values(), f"zeros_for_empty={self.zeros_for_empty}"]

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents, scaled as the denoiser expects them."""
        return pipeline_parts.encode(self.parts["vae"], pixels)

    @torch.no_grad()
    def embed(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """What the denoiser is conditioned on: {"encoder_hidden_states": [B, L, D1 + D2], "text_embeds": [B, D2]}.

        The first is the last layer but one of both encoders, the second the projected end token of the larger one.
        """
        return self.condition(self.tokenize(captions))

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """{"input_ids": [B, L], "input_ids_2": [B, L]}"""
        return {
            "input_ids": pipeline_parts.tokenize(self.parts["tokenizer"], captions),
            "input_ids_2": pipeline_parts.tokenize(self.parts["tokenizer_2"], captions),
        }

    def condition(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        """Embeds tokens; differentiable."""
        outputs = [
            encoder(tokens[name].to(encoder.device), output_hidden_states=True)
            for encoder, name in zip(self.text_encoders.values(), ("input_ids", "input_ids_2"), strict=True)
        ]
        hidden = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1).float()
        pooled = outputs[1].text_embeds.float()
        if self.zeros_for_empty:
            empty = pipeline_parts.tokenize(self.parts["tokenizer"], [""]).to(hidden.device)
            given = (tokens["input_ids"].to(hidden.device) != empty).any(1)
            hidden, pooled = hidden * given[:, None, None], pooled * given[:, None]
        return {"encoder_hidden_states": hidden, "text_embeds": pooled}

    def denoise(self, x: Tensor, t: Tensor, text: dict[str, Tensor]) -> Tensor:
        """The prediction, [B, C, h, w]: the only call that is trained.

        text may hold "time_ids", [B, 6]: height and width of the original, top and left of the crop, height and width
        of the crop, in pixels. Without them the image counts as uncropped, which is what the pipeline asks for.
        """
        time_ids = text["time_ids"] if "time_ids" in text else self.uncropped(x)
        added = {"text_embeds": text["text_embeds"], "time_ids": time_ids}
        return self.denoiser(x, t, text["encoder_hidden_states"], added_cond_kwargs=added).sample

    def uncropped(self, x: Tensor) -> Tensor:
        """The time ids of images whose latents are [B, C, h, w], if they were neither cropped nor resized; [B, 6]."""
        height, width = (self.pixels_per_latent * side for side in x.shape[-2:])
        return torch.tensor([height, width, 0, 0, height, width], device=x.device).expand(len(x), -1)

    def decode(self, latents: Tensor) -> Tensor:
        return pipeline_parts.decode(self.parts["vae"], latents)

    def to(self, device: torch.device) -> None:
        self.parts.to(device)

    def release(self) -> None:
        self.parts.release()

    def pipeline(self, scheduler: SchedulerMixin) -> StableDiffusionXLPipeline:
        """A stock pipeline around the present weights."""
        pipeline = StableDiffusionXLPipeline(
            vae=self.parts["vae"],
            **self.text_encoders,
            **self.tokenizers,
            unet=getattr(self.denoiser, "module", self.denoiser),  # without the wrapper of data parallelism
            scheduler=scheduler,
            force_zeros_for_empty_prompt=self.zeros_for_empty,
            add_watermarker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


PARTS = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "tokenizer": CLIPTokenizer,
    "tokenizer_2": CLIPTokenizer,
}


def load(
    path: str, pretrained: bool = True, revision: str | None = None, variant: str | None = None
) -> StableDiffusionXL:
    """For the parameters see `pipeline_parts.Parts` and `pipeline_parts.open_pipeline`."""
    parts, config = pipeline_parts.open_pipeline(path, StableDiffusionXLPipeline, PARTS, pretrained, revision, variant)
    return StableDiffusionXL(parts, config.get("force_zeros_for_empty_prompt", True))
