"""Pipelines to sample from: of a run, of a checkpoint, of a folder, of the Hub."""

import logging
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file

from t2i.config import ConfigError
from t2i.config.instantiate import build
from t2i.models.loading import hide_loading_bars, loading, locate
from t2i.models.lora import AVERAGED, RAW
from t2i.optim.trained_weights import hold_weights
from t2i.runs import checkpoints, config_file
from t2i.runs.config_file import read_config


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
    elif (folder / config_file.NAME).is_file():
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
    cfg = OmegaConf.create(read_config(run))
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
    hold_weights(model.denoiser).load_state_dict(state)
    return model.pipeline(build(cfg, "scheduler"))
