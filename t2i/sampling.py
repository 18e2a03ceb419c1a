"""Pictures of fixed prompts from fixed seeds."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from safetensors.torch import load_file

from t2i import checkpoints
from t2i.adapters import AVERAGED, RAW
from t2i.components import build
from t2i.config import ConfigError
from t2i.draws import generator
from t2i.models import hide_loading_bars, loading, locate
from t2i.trained import Trained

FORWARD_BATCH = 16


@torch.no_grad()
def sample(
    pipeline,
    prompts: Sequence[str],
    seed: int,
    steps: int,
    guidance_scale: float,
    places: Sequence[int] | None = None,
) -> list[Image.Image]:
    """One picture for each prompt, or for those at some places in the list, with a stock Diffusers pipeline.

    The starting noise of a picture depends on `seed` and its place in the list only, never on what else is drawn.
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


def load_pipeline(source: str | Path, weights: str = "ema"):
    """A pipeline to sample from, on the GPU if there is one.

    source: a run folder (its exported model, or its newest checkpoint while it is unfinished), a checkpoint, the folder
    of a pipeline, a Hub id, or the name of a bundled model. weights: ema or raw. Adapters are put into the base that
    their run names.
    """
    hide_loading_bars()
    folder = Path(source)
    folder = folder.resolve() if folder.is_dir() else folder
    if any((folder / "model" / file).is_file() for file in ("model_index.json", AVERAGED)):
        folder = folder / "model"
    elif (folder / "config.yaml").is_file():
        checkpoint = checkpoints.newest(folder / "checkpoints")
        if checkpoint is None:
            raise ConfigError(f"{folder} holds neither model/ nor a whole checkpoint yet")
        folder = checkpoint
    on_gpu = torch.cuda.is_available()
    if (folder / "manifest.json").is_file():
        pipeline = _from_checkpoint(folder, weights)
    elif (folder / AVERAGED).is_file():
        pipeline = _from_adapters(folder, weights)
    else:
        name = folder if folder.is_dir() else source
        pipeline = _from_pretrained(name, weights, torch.float16 if on_gpu else torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda" if on_gpu else "cpu")


def _from_pretrained(name: str | Path, weights: str, dtype: torch.dtype):
    with loading(str(name)):
        place = locate(name)
        unused = {"safety_checker": None} if "safety_checker" in DiffusionPipeline.load_config(place) else {}
        pipeline = DiffusionPipeline.from_pretrained(place, dtype=dtype, **unused)
    if weights == "raw" and (Path(place) / "unet" / "diffusion_pytorch_model.non_ema.safetensors").is_file():
        pipeline.unet = UNet2DConditionModel.from_pretrained(place, subfolder="unet", variant="non_ema", dtype=dtype)
    return pipeline


def _config(run: Path) -> DictConfig:
    """The configuration of a run, which may be a stranger's: what it has allowed itself does not count."""
    cfg = OmegaConf.load(run / "config.yaml")
    cfg.allowed_targets = []
    return cfg


def _from_adapters(folder: Path, weights: str):
    """The base of the run that `folder`, its model/, lies in, with the adapters in it."""
    cfg = _config(folder.parent)
    pipeline = build(cfg, "model").pipeline(build(cfg, "scheduler"))
    raw = weights == "raw" and (folder / RAW).is_file()
    logging.getLogger("diffusers.loaders.lora_base").setLevel(logging.ERROR)  # a text encoder without is no surprise
    pipeline.load_lora_weights(folder, weight_name=RAW if raw else AVERAGED)
    return pipeline


def _from_checkpoint(checkpoint: Path, weights: str):
    cfg = _config(checkpoint.parent.parent)
    model = build(cfg, "adapter").attach(build(cfg, "model"))
    file = checkpoint / ("denoiser.safetensors" if weights == "raw" else "ema.safetensors")
    if not file.is_file():
        raise ConfigError(f"{checkpoint} has no averaged weights (ema=none); use --weights raw")
    state = load_file(file)
    state.pop("updates", None)
    Trained(model.denoiser).load_state_dict(state)
    return model.pipeline(build(cfg, "scheduler"))
