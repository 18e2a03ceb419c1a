"""Configurations that earlier versions wrote, as this version would have written them."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

MOVED = {
    "t2i.adapters.LoRA": "t2i.models.lora.LoRA",
    "t2i.adapters.NoAdapter": "t2i.models.lora.NoAdapter",
    "t2i.captioned.folder": "t2i.data.image_folder.folder",
    "t2i.captioned.hub": "t2i.data.hub_dataset.hub",
    "t2i.captioned.openmoji": "t2i.data.openmoji.openmoji",
    "t2i.data.datasets.folder": "t2i.data.image_folder.folder",
    "t2i.data.datasets.hub": "t2i.data.hub_dataset.hub",
    "t2i.data.datasets.openmoji": "t2i.data.openmoji.openmoji",
    "t2i.data.streaming.hub": "t2i.data.sharded_datasets.stream",
    "t2i.data.streaming.webdataset": "t2i.data.sharded_datasets.webdataset",
    "t2i.diffusion.pretrained_scheduler": "t2i.models.schedulers.pretrained_scheduler",
    "t2i.ema.EMA": "t2i.optim.ema.EMA",
    "t2i.ema.NoEMA": "t2i.optim.ema.NoEMA",
    "t2i.ema.ScheduleFree": "t2i.optim.ema.ScheduleFree",
    "t2i.errors.Huber": "t2i.diffusion.residuals.Huber",
    "t2i.errors.SmoothL1": "t2i.diffusion.residuals.SmoothL1",
    "t2i.errors.Squared": "t2i.diffusion.residuals.Squared",
    "t2i.losses.Debiased": "t2i.diffusion.losses.Debiased",
    "t2i.losses.EDM": "t2i.diffusion.losses.EDM",
    "t2i.losses.MSE": "t2i.diffusion.losses.MSE",
    "t2i.losses.MinSNR": "t2i.diffusion.losses.MinSNR",
    "t2i.losses.P2": "t2i.diffusion.losses.P2",
    "t2i.losses.SoftMinSNR": "t2i.diffusion.losses.SoftMinSNR",
    "t2i.losses.TruncatedSNR": "t2i.diffusion.losses.TruncatedSNR",
    "t2i.lr_schedules.warmup_stable_decay": "t2i.optim.lr_schedules.warmup_stable_decay",
    "t2i.optimizers.StochasticAdamW": "t2i.optim.optimizers.StochasticAdamW",
    "t2i.streams.hub": "t2i.data.sharded_datasets.stream",
    "t2i.streams.webdataset": "t2i.data.sharded_datasets.webdataset",
    "t2i.timesteps.Biased": "t2i.diffusion.timesteps.Biased",
    "t2i.timesteps.LogitNormal": "t2i.diffusion.timesteps.LogitNormal",
    "t2i.timesteps.Stratified": "t2i.diffusion.timesteps.Stratified",
    "t2i.timesteps.Uniform": "t2i.diffusion.timesteps.Uniform",
}


# Settings that there were not -> the values that say what t2i then did; a run that began so goes on so.
ADDED = {
    **{"continuous_time": False, "validation.log_snr": None, "model.quantize": None, "early_stop.metric": "val/loss"},
    **{"dataset.min_validation_samples": 0, "validation.images": "held_out", "validation.train_items": 0},
    **{"from.run": None, "from.only": None, "tf32": False, "cudnn_benchmark": False, "deterministic": False},
    **{"validation.reference": None, "validation.reference_items": 64, "dataset.folds": None, "dataset.fold": None},
    **{
        "dataset.resolution": 512,
        "dataset.caption": None,
        "dataset.captions_per_line": True,
        "dataset.split_folders": False,
        "dataset.caption_template": None,
        "dataset.shuffle_tags": False,
        "dataset.keep_tags": 1,
        "dataset.tag_variants": 8,
        "dataset.masks": None,
        "dataset.mask_background": 0.0,
        "dataset.mask_normalize": True,
        "dataset.loss_weight_column": None,
    },
    **{"adapter.new_tokens": None, "adapter.vectors": 1},
    **{"adapter.rslora": False, "adapter.rank_pattern": None, "adapter.path": None, "adapter.alpha_pattern": None},
    **{"model.config": None, "scheduler.config": None, "model.vae": None, "model.adapters": []},
}
# An option -> those of its defaults that have changed since: what they were, and what they are.
CHANGED = {"model=tiny": {"steps": (300, 200), "optimizer.lr": (7e-4, 1e-3)}}
FLOW = {  # of scheduler=flow_matching, besides num_train_timesteps and flow_shift
    "_target_": "diffusers.DPMSolverMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "steps_offset": 1,
}


def with_moved_targets(tree: Any) -> Any:
    """The configuration (nested or flat) with every `_target_` under its present name, with that one's settings."""
    if isinstance(tree, dict):
        tree = {key: with_moved_targets(value) for key, value in tree.items()}
        return _with_present_flow(_with_present_flow(tree), "scheduler.")
    if isinstance(tree, list):
        return [with_moved_targets(value) for value in tree]
    return MOVED.get(tree, tree) if isinstance(tree, str) else tree


def set_as_then(
    config: DictConfig, begun: dict[str, Any], overrides: list[str], choices: Mapping[str, str | None]
) -> dict[str, tuple[Any, Any]]:
    """Set settings that nobody typed as they were when something began, where t2i has changed their default since.

    A setting that there was not is set to what t2i then did. Returns the changed ones: key -> (the default then, the
    default now).

    config: unresolved, so that what follows from these values does so. begun: the flat configuration that it began
    with, {} if it has not. choices: config group -> its option.
    """
    if not begun:
        return {}
    given = {override.lstrip("+~").partition("=")[0] for override in overrides}
    options = [f"{group}={option}" for group, option in choices.items()]
    defaults = {key: both for option in options for key, both in CHANGED.get(option, {}).items()}
    kept = {
        key: (old, new)
        for key, (old, new) in defaults.items()
        if key not in given and begun.get(key) == old and OmegaConf.select(config, key) == new
    }
    added = {key: old for key, old in ADDED.items() if key not in given and begun.get(key, old) == old}
    for key, value in (added | {key: old for key, (old, _) in kept.items()}).items():
        table, _, name = key.rpartition(".")
        if name in (OmegaConf.select(config, table) if table else config):  # not every data set has every setting
            OmegaConf.update(config, key, value)
    return kept


def _with_present_flow(tree: dict[Any, Any], prefix: str = "") -> dict[Any, Any]:
    flow = {f"{prefix}{key}": value for key, value in FLOW.items()}
    changeable = {f"{prefix}{key}" for key in ("num_train_timesteps", "flow_shift")}
    own = {key: value for key, value in tree.items() if str(key).startswith(prefix)}
    if own.keys() != flow.keys() | changeable or any(own[key] != value for key, value in flow.items()):
        return tree
    kept = {key: value for key, value in tree.items() if key not in flow}
    shift = kept.pop(f"{prefix}flow_shift")
    return {**kept, f"{prefix}_target_": "t2i.models.schedulers.flow_matching", f"{prefix}shift": shift}
