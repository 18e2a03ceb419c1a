"""Weights that no run has trained, averages over the steps of a run or over runs, judged on the battery."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from t2i.config import ConfigError
from t2i.config.checks import check
from t2i.config.compose import compose
from t2i.config.instantiate import resolve_once
from t2i.config.moved_targets import ADDED
from t2i.evaluation.battery import evaluating
from t2i.experiment.assembly import Experiment, assemble, describe
from t2i.experiment.plan import check_the_rest, make_plan
from t2i.optim.ema import exported_weights
from t2i.optim.post_hoc import check_length, combination
from t2i.runs import checkpoints
from t2i.runs.config_file import read_config
from t2i.runs.folder import read_info
from t2i.runs.snapshots import combine, lengths_in, snapshots_of
from t2i.runs.text import one_line
from t2i.runs.whole_folders import new_folder

WORST = 0.05  # relative error of a profile, above which an average is not called by its length
USUAL = (0.03, 0.05, 0.075, 0.1, 0.15, 0.2)  # lengths


@dataclass(frozen=True)
class Average:
    """An average of a run's weights over its steps."""

    length: float
    weights: dict[str, Tensor]
    profile_error: float  # see `t2i.optim.post_hoc.combination`


def averages_of(run: Path, lengths: Sequence[float]) -> list[Average]:
    """The averages of these lengths after the run's last snapshot.

    Raises ConfigError if there are no snapshots, or if they can't be combined to one of the lengths.
    """
    files = snapshots_of(run)
    kept = lengths_in(next(iter(files.values())))
    steps, own = np.repeat(list(files), len(kept)), np.tile(kept, len(files))
    for length in lengths:
        check_length("--length", length)
    found = [combination(steps, own, length, steps[-1]) for length in lengths]
    for length, (_, error) in zip(lengths, found, strict=True):
        if error > WORST:
            raise ConfigError(f"--length {length:g} is not to be had: {_reach(steps, own)}")
    table = np.stack([coefficients for coefficients, _ in found]).reshape(len(lengths), len(files), len(kept))
    sums = combine(
        [
            (file, [(length, table[:, i, j].tolist()) for j, length in enumerate(kept)])
            for i, file in enumerate(files.values())
        ]
    )
    return [Average(length, weights, error) for length, weights, (_, error) in zip(lengths, sums, found, strict=True)]


def _reach(steps: np.ndarray, own: np.ndarray) -> str:
    within = [
        length for length in np.arange(0.01, 0.285, 0.005) if combination(steps, own, length, steps[-1])[1] <= WORST
    ]
    number = len(np.unique(steps))
    if not within:
        return f"{number} snapshots are too few to be combined; train with a larger ema.snapshots"
    return (
        f"these {number} snapshots can be combined to lengths of {min(within):.3g} to {max(within):.3g}; more "
        "(ema.snapshots) reach further"
    )


def open_run(folder: Path, rank: int | None = None) -> Experiment:
    """What the run was trained with, to measure other weights on its battery.

    rank: of adapters, if it is another one than the run's. The folder may be a stranger's: its own allowed_targets are
    ignored. Raises ConfigError if the battery is not the one that the run was measured on.
    """
    cfg = _settings(folder)
    if rank is not None:
        cfg.adapter.alpha, cfg.adapter.rank = cfg.adapter.alpha * rank / cfg.adapter.rank, rank
    check(cfg, num_processes=1)
    plan = make_plan(cfg)
    check_the_rest(cfg)
    experiment = assemble(cfg, plan, folder)
    before, now = read_info(folder).get("battery", {}), describe(experiment)["battery"]
    if before.get("hash") != now["hash"]:
        raise ConfigError(
            f"{folder} was measured on other held-out images than its data set holds out now; restore the data"
        )
    return experiment


def _settings(folder: Path) -> DictConfig:
    """The run's configuration, for its battery alone; settings that there were not when it began are as they were."""
    began, defaults = read_config(folder), resolve_once(compose([]))
    for key, default in cast("dict[str, Any]", OmegaConf.to_container(defaults)).items():
        own = began.setdefault(key, default)
        if key in ("validation", "early_stop", "evaluation", "samples", "hub"):
            for name in default:
                own.setdefault(name, ADDED.get(f"{key}.{name}", default[name]))
    cfg: DictConfig = OmegaConf.create(began)
    cfg.allowed_targets = []
    cfg.tracker = {"_target_": "t2i.tracking.NoTracker"}
    cfg.backend = {"_target_": "t2i.backends.pytorch.PyTorch"}  # whatever trained it
    cfg.sample_every = cfg.evaluate_every = 0
    cfg.validation.train_items, cfg.validation.reference, cfg.validation.quantization_cost = 0, None, False
    if cfg.dataset.get("follow_links"):
        cfg.dataset.follow_links = False
    return cfg


def errors(experiment: Experiment, weights: Mapping[str, Tensor]) -> np.ndarray:
    """The battery's errors with these weights, [N, K]: what a validation in training measures."""
    device = experiment.accelerator.device
    on_device = {name: tensor.to(device) for name, tensor in weights.items()}
    with experiment.optimization.trained.replaced(on_device), evaluating(experiment.model.denoiser):
        return experiment.battery.errors(experiment.model, experiment.plan.diffusion, experiment.accelerator)


def export(experiment: Experiment, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write a model folder, as a run's model/, with these weights: complete, or not at all.

    Raises ConfigError if there is such a folder, or if another process is writing it.
    """
    adapter, model, scheduler = experiment.plan.adapter, experiment.model, experiment.plan.scheduler
    pipeline = model.pipeline if adapter.saves_text else model.sampler
    with new_folder(folder) as new, experiment.optimization.trained.replaced(weights, torch.float32):
        adapter.save(pipeline(scheduler), new)


def refuse_other_runs(runs: Sequence[Path]) -> None:
    """ConfigError if runs can't be averaged: they began with other weights, or hold out other images."""
    facts = [_origin(run) for run in runs]
    for run, own in zip(runs, facts, strict=True):
        for name, value in own.items():
            if value != facts[0][name]:
                raise ConfigError(
                    f"{run} differs from {runs[0]} in {name} ({value}, not {facts[0][name]}); only runs that began "
                    "with the same weights and hold out the same images can be averaged"
                )
    if not facts[0]["model.pretrained"]:
        raise ConfigError(
            f"{runs[0]} began with fresh weights (model.pretrained=false); the mean of such runs is noise"
        )


def _origin(run: Path) -> dict[str, Any]:
    config, info = read_config(run), read_info(run)
    model, adapter = config.get("model", {}), config.get("adapter", {})
    return {
        "its battery": info.get("battery", {}).get("hash"),
        "model.path": model.get("path"),
        "model.adapters": model.get("adapters", []),
        "model.pretrained": model.get("pretrained"),
        "adapter.alpha / adapter.rank": adapter.get("alpha", 1) / adapter.get("rank", 1),
    }


def is_adapter(experiment: Experiment) -> bool:
    return experiment.plan.adapter.needs_pretrained


def trained_weights(run: Path, weights: str = "ema") -> dict[str, Tensor]:
    """The weights of a run's newest checkpoint, or of a checkpoint: averaged ones if there are any, or with raw not."""
    checkpoint = run if (run / checkpoints.MANIFEST).is_file() else checkpoints.newest(run / "checkpoints")
    if checkpoint is None:
        raise ConfigError(f"{run} has no complete checkpoint; give a run, or one of its checkpoints/step-NNNNNN")
    for name in ("ema", "denoiser") if weights == "ema" else ("denoiser",):
        file = checkpoint / f"{name}.safetensors"
        try:
            found: dict[str, Any] = exported_weights(load_file(file)) if file.is_file() else {}
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{file} can't be read ({one_line(error)}); use another checkpoint") from error
        if found:
            return found
    raise ConfigError(f"{checkpoint} holds no weights; use another checkpoint")


def last_steps(run: Path) -> tuple[int, int]:
    """The steps of the last snapshot and of the newest checkpoint, which differ if it ended early."""
    checkpoint = checkpoints.newest(run / "checkpoints")
    return max(snapshots_of(run)), checkpoints.step_of(checkpoint) if checkpoint else 0


def run_of(path: Path) -> Path:
    """The run that a path is, or that its checkpoint belongs to."""
    path = path.resolve()
    return path.parent.parent if (path / checkpoints.MANIFEST).is_file() else path
