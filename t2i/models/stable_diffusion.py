"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022): UNet, one CLIP text encoder, KL autoencoder."""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from t2i.models import hide_loading_bars, loading, locate


@dataclass
class StableDiffusion:
    """The seam between the loop and the family. Pixels are [B, 3, H, W] in [-1, 1]; latents [B, C, H/f, W/f]."""

    denoiser: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents, scaled as the denoiser expects them."""
        posterior = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist
        shift = self.vae.config.get("shift_factor") or 0.0
        scale = self.vae.config.scaling_factor
        return (posterior.mean.float() - shift) * scale, posterior.std.float() * scale

    @torch.no_grad()
    def embed(self, captions: list[str]) -> dict[str, Tensor]:
        """What the denoiser is conditioned on: {"encoder_hidden_states": [B, L, D]}; captions are cut at L tokens."""
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        hidden = self.text_encoder(tokens.input_ids.to(self.text_encoder.device)).last_hidden_state
        return {"encoder_hidden_states": hidden.float()}

    def denoise(self, x: Tensor, t: Tensor, text: dict[str, Tensor]) -> Tensor:
        """The prediction, [B, C, h, w]: the only call that is trained."""
        return self.denoiser(x, t, **text).sample

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        shift = self.vae.config.get("shift_factor") or 0.0
        latents = latents / self.vae.config.scaling_factor + shift
        return self.vae.decode(latents.to(self.vae.device, self.vae.dtype)).sample.float()

    def pipeline(self, scheduler: SchedulerMixin) -> StableDiffusionPipeline:
        """A stock pipeline around the present weights."""
        pipeline = StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=getattr(self.denoiser, "module", self.denoiser),  # without the wrapper of data parallelism
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def load(
    path: str, pretrained: bool = True, revision: str | None = None, variant: str | None = None
) -> StableDiffusion:
    """Load a pipeline's parts in float32; the frozen ones in evaluation mode and without gradients.

    path: `tiny`, a local folder in the Diffusers layout, or a Hub id. pretrained=False gives the denoiser fresh
    weights, drawn from torch's seed; the frozen parts stay as they are.
    """
    hide_loading_bars()
    folder = locate(path)
    source = {"revision": revision, "variant": variant, "use_safetensors": True, "dtype": torch.float32}
    with loading(path):
        if pretrained:
            denoiser = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **source)
        else:
            config = UNet2DConditionModel.load_config(folder, subfolder="unet", revision=revision)
            denoiser = UNet2DConditionModel.from_config(config)
        vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", **source)
        text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", **source)
        tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", revision=revision)
    for frozen in (vae, text_encoder):
        frozen.eval().requires_grad_(False)
    return StableDiffusion(denoiser, vae, text_encoder, tokenizer)
