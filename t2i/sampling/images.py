"""Images of fixed prompts from fixed seeds."""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from t2i.models.parts import denoiser_of
from t2i.models.prompts import EmbeddedPrompts
from t2i.rng import generator

FORWARD_BATCH = 16
GUIDED_BY = {"QwenImagePipeline": "true_cfg_scale"}  # others take guidance_scale


def sample(
    pipeline: Any,
    prompts: Sequence[str] | EmbeddedPrompts,
    seed: int,
    steps: int,
    guidance_scale: float,
    places: Sequence[int] | None = None,
    size: int | None = None,
) -> list[Image.Image]:
    """One image for each prompt, as `draw` makes them.

    places: indices of the prompts to sample; None means all. The initial noise of an image depends on `seed` and the
    index of its prompt only, not on which other prompts are sampled.
    """
    places = range(len(prompts)) if places is None else places
    randoms = [generator(seed, "sample", place) for place in places]
    return draw(pipeline, prompts, places, randoms, steps=steps, guidance_scale=guidance_scale, size=size)


@torch.no_grad()
def draw(
    pipeline: Any,
    prompts: Sequence[str] | EmbeddedPrompts,
    places: Sequence[int],
    randoms: Sequence[np.random.Generator],
    *,
    steps: int,
    guidance_scale: float,
    size: int | None = None,
) -> list[Image.Image]:
    """One image for each of the places, which are indices of prompts, from a stock Diffusers pipeline.

    randoms: what each image's noise is drawn from. Prompts are as long as those that `load_pipeline` found the pipeline
    to be trained with. size: height and width in pixels; None: what the pipeline was made for.
    """
    denoiser = denoiser_of(pipeline.components)
    noise = _latents if denoiser == "unet" else _generators
    settings = {"num_inference_steps": steps, GUIDED_BY.get(type(pipeline).__name__, "guidance_scale"): guidance_scale}
    if (tokens := getattr(pipeline, "tokens_trained_with", None)) is not None and not isinstance(
        prompts, EmbeddedPrompts
    ):
        settings["max_sequence_length"] = tokens
    if size is not None:
        settings |= {"height": size, "width": size}
    if "use_resolution_binning" in inspect.signature(pipeline.__call__).parameters:
        settings["use_resolution_binning"] = size is None
    images = []
    for start in range(0, len(places), FORWARD_BATCH):
        part = slice(start, start + FORWARD_BATCH)
        device = pipeline.components[denoiser].device
        request = _request(prompts, places[part], device, "true_cfg_scale" in settings)
        images += pipeline(**request, **noise(pipeline, randoms[part], size), **settings).images
    return images


def _request(
    prompts: Sequence[str] | EmbeddedPrompts, places: Sequence[int], device: torch.device, negative: bool
) -> dict[str, Any]:
    """What is asked for, as arguments of the pipeline; negative: whether only a negative prompt gives it guidance."""
    if isinstance(prompts, EmbeddedPrompts):
        return prompts.request(places, device)
    texts = [prompts[place] for place in places]
    return {"prompt": texts, "negative_prompt": [""] * len(texts)} if negative else {"prompt": texts}


def _latents(pipeline: Any, randoms: Sequence[np.random.Generator], size: int | None) -> dict[str, Any]:
    """The initial noise of a UNet, whose latents have one layout."""
    config = pipeline.unet.config
    side = config.sample_size if size is None else size // pipeline.vae_scale_factor
    shape = (config.in_channels, side, side)
    noise = [random.standard_normal(shape, dtype=np.float32) for random in randoms]
    latents = torch.from_numpy(np.stack(noise)).to(pipeline.unet.device, pipeline.vae.dtype)
    return {"latents": latents, **_generators(pipeline, randoms, size)}  # some samplers draw further noise


def _generators(pipeline: Any, randoms: Sequence[np.random.Generator], size: int | None) -> dict[str, Any]:
    """What the pipeline draws noise from, in the layout of its family."""
    seeds = [int(random.integers(2**63)) for random in randoms]
    return {"generator": [torch.Generator().manual_seed(seed) for seed in seeds]}
