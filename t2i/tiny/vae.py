"""Train the autoencoder of model=tiny on the OpenMoji images, 64 px to 16 x 16 x 4: `python -m t2i.tiny.vae`.

The encoder and decoder are trained together first; then the decoder alone, on slightly noisy latents such as a
diffusion model produces.
"""

import argparse
import copy
import time
from pathlib import Path
from typing import cast

import numpy as np
import torch
from diffusers.models import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn
from torch.nn import functional as F

from t2i.data.openmoji import catalogue, draw

OUTPUT = Path(__file__).parent / "pipeline" / "vae"
RESOLUTION = 64
BATCH_SIZE = 16
JOINT_FRACTION = 0.65  # of the time; the rest trains the decoder alone
LEARNING_RATE = {"joint": 2e-3, "decoder": 1.5e-3}
KL_WEIGHT = 3e-4
LATENT_NOISE = 0.03  # in units of the latents' standard deviation
EMA_DECAY = 0.995
TONES_WEIGHT = 0.4  # half of the images are skin-tone variants
SAVE_EVERY = 180  # seconds


def load_images(split: str) -> tuple[Tensor, Tensor]:
    """Images, uint8 [N, 3, 64, 64], and the weight with which to sample each, [N]."""
    entries = [entry for entry in catalogue() if entry.split == split]
    images = np.stack([np.asarray(draw(entry.emoji, RESOLUTION)) for entry in entries])
    weights = torch.tensor([TONES_WEIGHT if entry.group == "people_tones" else 1.0 for entry in entries])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), weights


def make_vae() -> AutoencoderKL:
    vae = AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=RESOLUTION,
        mid_block_add_attention=False,
    )
    return nn.utils.convert_conv2d_weight_memory_format(vae, torch.channels_last)


def encode(vae: AutoencoderKL, images: Tensor) -> DiagonalGaussianDistribution:
    """The distribution of the latents of images in [-1, 1], [B, 3, H, W]."""
    return vae.encode(images, return_dict=False)[0]


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    return vae.decode(cast(torch.FloatTensor, latents), return_dict=False)[0]


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move an exponential moving average towards the weights of the model."""
    for averaged, weight in zip(average.parameters(), model.parameters(), strict=True):
        averaged.lerp_(weight, 1 - decay)


def augment(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] to [-1, 1]: mirrored, shifted, colour channels permuted, so that unseen flags work, too."""
    images = images.float() / 127.5 - 1
    for i in range(len(images)):
        flips = [axis for axis in (1, 2) if torch.rand(()) < 0.5]
        shift = torch.randint(-4, 5, (2,)).tolist()
        colours = torch.randperm(3) if torch.rand(()) < 0.3 else torch.arange(3)
        images[i] = images[i, colours].flip(flips).roll(shift, (1, 2))
    return images.contiguous(memory_format=torch.channels_last)


def reconstruction_loss(reconstructed: Tensor, images: Tensor) -> Tensor:
    """L1 + MSE, where the emoji counts six times as much as the white around it, + L1 of the gradients."""
    ink = F.max_pool2d((images.amin(1, keepdim=True) < 0.95).float(), 3, stride=1, padding=1)
    error = reconstructed - images
    weighted = (0.3 + 1.5 * ink) * (error.abs() + error**2)
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    # A shape that is a pixel off is hard to see; a wrong colour is not. So the low frequencies count once more.
    colours = F.avg_pool2d(error, 4).abs().mean()
    return weighted.mean() + edges + colours


@torch.no_grad()
def evaluate(vae: AutoencoderKL, images: Tensor) -> tuple[float, Tensor]:
    """Mean PSNR in dB over the uint8 images [N, 3, H, W], and their latents [N, 4, H / 4, W / 4]."""
    psnr, latents = [], []
    for batch in images.split(64):
        images = (batch.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        latents.append(encode(vae, images).mean)
        error = (decode(vae, latents[-1]).clamp(-1, 1) - images).div(2).square().mean((1, 2, 3))
        psnr.append(-10 * error.log10())
    return torch.cat(psnr).mean().item(), torch.cat(latents)


@torch.no_grad()
def standardise(vae: AutoencoderKL, latents: Tensor) -> None:
    """Scale each channel to mean 0 and deviation 1 in the encoder's last layer, and back in the decoder's first."""
    last, first = vae.quant_conv, vae.post_quant_conv
    assert last and first and last.bias is not None and first.bias is not None  # noqa: PT018  (as make_vae builds them)
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(mean)
    last.weight[:channels] /= std.view(-1, 1, 1, 1)
    last.bias[:channels] = (last.bias[:channels] - mean) / std
    last.bias[channels:] -= 2 * std.log()  # these channels are the log variance
    first.bias += first.weight[:, :, 0, 0] @ mean
    first.weight *= std.view(1, -1, 1, 1)


def save(vae: AutoencoderKL, train: Tensor, held_out: Tensor) -> str:
    """Save a standardised copy in half precision; returns its quality."""
    finished = copy.deepcopy(vae)
    sample = train[::8]
    standardise(finished, evaluate(finished, sample)[1])
    train_psnr, latents = evaluate(finished, sample)
    finished.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    finished.half().save_pretrained(OUTPUT)
    psnr, _ = evaluate(finished.float(), held_out)
    return f"PSNR {psnr:.2f} dB held out, {train_psnr:.2f} dB trained on"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.3, help="training time (default: %(default)s)")
    budget = parser.parse_args().minutes * 60
    torch.manual_seed(0)
    (train, weights), (held_out, _) = load_images("train"), load_images("validation")
    vae = make_vae()
    print(f"{sum(p.numel() for p in vae.parameters()) / 1e6:.2f} M parameters, {len(train)} images", flush=True)
    start = time.time()
    for phase, begin, end in (("joint", 0, JOINT_FRACTION * budget), ("decoder", JOINT_FRACTION * budget, budget)):
        joint = phase == "joint"
        for name, parameter in vae.named_parameters():
            if name.startswith(("encoder.", "quant_conv.")):
                parameter.requires_grad_(joint)
        trained = [parameter for parameter in vae.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.99), weight_decay=1e-4)
        ema = copy.deepcopy(vae).requires_grad_(False)
        latent_std = evaluate(vae, train[:256])[1].std()
        step, saved = 0, time.time()
        while (elapsed := time.time() - start) < end:
            progress = (elapsed - begin) / (end - begin)
            lr = LEARNING_RATE[phase] * min(1, (step + 1) / 50) * min(1, (1 - progress) / 0.6)
            optimizer.param_groups[0]["lr"] = lr
            images = augment(train[torch.multinomial(weights, BATCH_SIZE)])
            with torch.set_grad_enabled(joint):
                posterior = encode(vae, images)
            noise = LATENT_NOISE * latent_std * torch.randn_like(posterior.mean) * (not joint)
            latents = posterior.sample() if joint else posterior.mean
            kl = posterior.kl().mean() / posterior.mean[0].numel()
            loss = reconstruction_loss(decode(vae, latents + noise), images) + KL_WEIGHT * kl
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            decay = min(EMA_DECAY, (step + 1) / (step + 10))
            update_average(ema, vae, decay)
            step += 1
            if step % 50 == 0:
                rate, left = step / (time.time() - start - begin), (budget - elapsed) / 60
                print(f"{phase} {step}: loss {loss.item():.4f}, {rate:.2f} steps/s, {left:.1f} min left", flush=True)
            if time.time() - saved > SAVE_EVERY:
                print(save(ema, train, held_out), flush=True)
                saved = time.time()
        vae.load_state_dict(ema.state_dict())
    print(save(vae, train, held_out))


if __name__ == "__main__":
    main()
