"""Images of fixed prompts from fixed seeds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from t2i.rng import generator

FORWARD_BATCH = 16


@torch.no_grad()
def sample(
    pipeline: Any,
    prompts: Sequence[str],
    seed: int,
    steps: int,
    guidance_scale: float,
    places: Sequence[int] | None = None,
) -> list[Image.Image]:
    """One image for each prompt, from a stock Diffusers pipeline.

    places: indices of the prompts to sample; None means all. The initial noise of an image depends on `seed` and the
    index of its prompt only, not on which other prompts are sampled.
    """
    places = range(len(prompts)) if places is None else places
    prompts = [prompts[place] for place in places]
    config = pipeline.unet.config
    shape = (config.in_channels, config.sample_size, config.sample_size)
    noise = [generator(seed, "sample", place).standard_normal(shape, dtype=np.float32) for place in places]
    device, images = pipeline.unet.device, []
    for start in range(0, len(prompts), FORWARD_BATCH):
        part = slice(start, start + FORWARD_BATCH)
        latents = torch.from_numpy(np.stack(noise[part])).to(device, pipeline.vae.dtype)
        output = pipeline(prompts[part], latents=latents, num_inference_steps=steps, guidance_scale=guidance_scale)
        images += output.images
    return images
