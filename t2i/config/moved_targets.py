"""New names of the `_target_`s in configurations that were written before the code moved into packages."""

from typing import Any

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


def with_moved_targets(tree: Any) -> Any:
    """The configuration (nested or flat) with every `_target_` under its present name."""
    if isinstance(tree, dict):
        return {key: with_moved_targets(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [with_moved_targets(value) for value in tree]
    return MOVED.get(tree, tree) if isinstance(tree, str) else tree
