"""Writes run folders as training leaves them, without training, for tests of the modules that read them."""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from PIL import Image

from t2i.evaluation.metrics import Metric, all_metrics
from t2i.runs.errors_file import write_errors

PROMPTS = ["cat face", "red apple"]
TARGETS = {"mse": "t2i.diffusion.losses.MSE", "minsnr": "t2i.diffusion.losses.MinSNR"}
TIMESTEPS = np.arange(31, 1000, 62)  # 16 of 1000
NUM_IMAGES = 24


def errors(better: float | np.ndarray, draw: str, timesteps: np.ndarray = TIMESTEPS) -> np.ndarray:
    """The errors of a run, [N, K], which differ far more between images than between runs.

    better: the fraction by which they are lower, one or [K]. draw: a name that seeds the noise of the run.
    """
    images = np.random.default_rng(7).lognormal(0, 0.5, (NUM_IMAGES, 1))
    noise = np.random.default_rng(zlib.crc32(draw.encode())).normal(0, 0.02, (NUM_IMAGES, len(timesteps)))
    return 0.2 * images * np.exp(-timesteps / 400 + noise) * (1 - better)


def log_snr(timesteps: np.ndarray) -> np.ndarray:
    """The log-SNRs at which the errors were measured."""
    return np.log(1e3) - timesteps / 80


def write_run(
    folder: Path,
    *overrides: str,
    better: float | np.ndarray = 0.0,
    state: str = "finished",
    validated: Sequence[int] = (0, 100, 200),
    averaged: bool = True,
    hours: bool = True,
    timesteps: np.ndarray = TIMESTEPS,
    **info: Any,
) -> Path:
    """Write a run of 200 steps, in which the errors fall by 30 % and `better`. info: more fields of run.json."""
    typed = dict(override.split("=", 1) for override in overrides)
    loss = typed.pop("loss", "minsnr")
    config = {
        "seed": 0,
        "steps": 200,
        "run": None,
        "sweep": "made_up",
        "sample_every": 100,
        "num_workers": 0,
        "loss": {"_target_": TARGETS.get(loss, loss)} | ({"snr_gamma": 5.0} if loss == "minsnr" else {}),
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 7e-4, "betas": [0.9, 0.999]},
        "samples": {"prompts": PROMPTS, "seed": 0},
    }
    config = OmegaConf.merge(config, OmegaConf.from_dotlist([f"{key}={value}" for key, value in typed.items()]))
    for subfolder in ("validation", "samples"):
        (folder / subfolder).mkdir(parents=True)
    OmegaConf.save(config, folder / "config.yaml")
    lines = [_validate(folder, step, better, averaged, hours, timesteps) for step in validated]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    facts = {
        "state": state,
        "started": "2026-01-01T00:00:00+0000",
        "code_revision": "abc",
        "device": "cpu",
        "choices": {"loss": loss, "optimizer": "adamw"},
        "overrides": list(overrides),
        "battery": {"hash": "one", "log_snr": log_snr(timesteps).tolist()},
    }
    (folder / "run.json").write_text(json.dumps(facts | info))
    return folder


def _validate(
    folder: Path, step: int, better: float | np.ndarray, averaged: bool, hours: bool, timesteps: np.ndarray
) -> dict[str, float]:
    """Write the errors and the samples of a step; returns the line of metrics.jsonl."""
    measured = {"": errors((0.3 + better) * step / 200, folder.name if step else "the start", timesteps)}
    if averaged:
        measured["ema/"] = 0.98 * measured[""] if step else measured[""]
    write_errors(folder / "validation" / f"step-{step:06d}.parquet", "log_snr", log_snr(timesteps), measured)
    pixels = np.random.default_rng(step).integers(0, 256, (16, 16 * len(PROMPTS), 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "samples" / f"step-{step:06d}.png")
    line = {"step": step, "memory/peak_gb": 2.5} | ({"speed/hours": step / 100} if hours else {})
    for prefix, values in measured.items():
        line |= {metric.name: metric.value(values) for metric in all_metrics(prefix, len(timesteps))}
    return line | ({"train/loss": 0.5, "speed/images_per_second": 50.0} if step else {})


def add_batteries(run: Path, better_on_training_images: float = 0.0, forgotten: float = 0.0) -> Path:
    """Give a run of `write_run` batteries of training and reference images, on which its errors change so."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        step = line["step"]
        for battery, folder, change in (
            ("train/", "train", 0.3 + better_on_training_images),
            ("ref/", "reference", -forgotten),
        ):
            raw = 0.9 * errors(change * step / 200, f"{battery}{run.name}" if step else f"{battery}the start")
            measured = {"": raw, "ema/": 0.98 * raw if step else raw}
            file = run / "validation" / folder / f"step-{step:06d}.parquet"
            write_errors(file, "log_snr", log_snr(TIMESTEPS), measured)
            for prefix, values in measured.items():
                name = Metric.named(f"val/{prefix}train_loss" if battery == "train/" else f"ref/{prefix}loss")
                line[name.name] = name.value(values)
        line |= {f"val/{p}gap": float(np.log(line[f"val/{p}loss"] / line[f"val/{p}train_loss"])) for p in ("", "ema/")}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    info = json.loads((run / "run.json").read_text())
    info |= {"train_battery": {"hash": "two", "on": "train"}, "reference_battery": {"hash": "three"}}
    (run / "run.json").write_text(json.dumps(info))
    return run
