"""The loop that t2i is measured against, with the work of Diffusers' examples/text_to_image/train_text_to_image.py.

Every step reads its images from their files, resizes, crops and mirrors them, tokenizes their captions, and encodes
both with the frozen autoencoder and text encoder, which are held in the type of mixed precision; then it adds noise,
predicts under autocast, and steps an AdamW as PyTorch builds it, without fused kernels. Of the script's default
settings those that change the work are kept: no worker processes, PyTorch's attention, the loss read in every step.
Validation, samples and checkpoints are left out, as they are of t2i's arms.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import compute_snr
from PIL import Image, ImageOps
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

FROZEN_TYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Settings:
    """As the script's arguments of the same meaning."""

    pipeline: str  # a folder in the Diffusers layout
    images: Path  # a folder of images, each with its caption in a .txt file of the same name
    resolution: int
    batch_size: int
    learning_rate: float
    mixed_precision: str  # no, fp16 or bf16
    gradient_checkpointing: bool
    random_crop: bool = False
    flip: bool = False
    snr_gamma: float | None = None
    max_grad_norm: float = 1.0
    seed: int = 0


class Images(torch.utils.data.Dataset):
    """Pixels, [3, H, W] in [-1, 1], and tokens, [L], made anew at each access."""

    def __init__(self, settings: Settings, tokenizer: CLIPTokenizer):
        self.settings, self.tokenizer = settings, tokenizer
        self.files = sorted(settings.images.glob("*.png"))
        self.captions = [file.with_suffix(".txt").read_text() for file in self.files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        with Image.open(self.files[index]) as file:
            pixels = np.asarray(self._augmented(file.convert("RGB")), dtype=np.float32)
        return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1, self._tokens(self.captions[index])

    def _augmented(self, image: Image.Image) -> Image.Image:
        """The shorter side at the resolution, a square of it, mirrored half of the time if asked."""
        side = self.settings.resolution
        scale = side / min(image.size)
        image = image.resize([round(length * scale) for length in image.size], Image.Resampling.BILINEAR)
        spare = torch.tensor(image.size) - side
        left, top = (torch.rand(2) * (spare + 1) if self.settings.random_crop else spare / 2).int().tolist()
        image = image.crop((left, top, left + side, top + side))
        return ImageOps.mirror(image) if self.settings.flip and torch.rand(()) < 0.5 else image

    def _tokens(self, caption: str) -> Tensor:
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(caption, max_length=length, padding="max_length", truncation=True, return_tensors="pt")
        return tokens.input_ids[0]


def diffusion_loss(
    unet: torch.nn.Module,
    scheduler: DDPMScheduler,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    text: Tensor,
    snr_gamma: float | None,
) -> Tensor:
    """Mean squared error of the prediction, weighted by Min-SNR (Hang et al. 2023) where gamma is given."""
    noisy = scheduler.add_noise(latents, noise, timesteps)
    prediction = unet(noisy, timesteps, text, return_dict=False)[0].float()
    is_velocity = scheduler.config.prediction_type == "v_prediction"
    target = (scheduler.get_velocity(latents, noise, timesteps) if is_velocity else noise).float()
    if snr_gamma is None:
        return F.mse_loss(prediction, target)
    snr = compute_snr(scheduler, timesteps)
    weight = snr.clamp(max=snr_gamma) / (snr + 1 if is_velocity else snr)
    return (weight * (prediction - target).square().flatten(1).mean(1)).mean()


def frozen(kind: type, settings: Settings, accelerator: Accelerator, name: str) -> Any:
    """A part of the pipeline that is not trained."""
    part = kind.from_pretrained(settings.pipeline, subfolder=name, dtype=torch.float32).requires_grad_(False)
    return part.to(accelerator.device, FROZEN_TYPES[accelerator.mixed_precision])


def train(settings: Settings) -> Iterator[float]:
    """Load and prepare everything; then each step is taken when its loss is asked for, without an end."""
    torch.manual_seed(settings.seed)
    accelerator = Accelerator(mixed_precision=settings.mixed_precision)
    scheduler = DDPMScheduler.from_pretrained(settings.pipeline, subfolder="scheduler")
    tokenizer = CLIPTokenizer.from_pretrained(settings.pipeline, subfolder="tokenizer")
    vae = frozen(AutoencoderKL, settings, accelerator, "vae")
    text_encoder = frozen(CLIPTextModel, settings, accelerator, "text_encoder")
    unet = UNet2DConditionModel.from_pretrained(settings.pipeline, subfolder="unet", dtype=torch.float32).train()
    if settings.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=settings.learning_rate)
    batches = torch.utils.data.DataLoader(
        Images(settings, tokenizer), batch_size=settings.batch_size, shuffle=True, drop_last=True
    )
    lr_scheduler = get_scheduler("constant", optimizer)
    unet, optimizer, batches, lr_scheduler = accelerator.prepare(unet, optimizer, batches, lr_scheduler)

    def steps() -> Iterator[float]:
        for pixels, tokens in chain.from_iterable(repeat(batches)):
            with torch.no_grad():
                latents = vae.encode(pixels.to(vae.dtype)).latent_dist.sample() * vae.config.scaling_factor
                text = text_encoder(tokens, return_dict=False)[0]
            noise = torch.randn_like(latents)
            timesteps = torch.randint(len(scheduler.betas), (len(latents),), device=latents.device)
            with accelerator.autocast():
                loss = diffusion_loss(unet, scheduler, latents, noise, timesteps, text, settings.snr_gamma)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(unet.parameters(), settings.max_grad_norm)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()
            yield loss.item()

    return steps()
