"""Run folders as training leaves them, written without training, for tests of what reads them."""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import OmegaConf
from PIL import Image

from t2i.evaluation.metrics import all_metrics

PROMPTS = ["cat face", "red apple"]
TARGETS = {"mse": "t2i.diffusion.losses.MSE", "minsnr": "t2i.diffusion.losses.MinSNR"}
TIMESTEPS = np.arange(31, 1000, 62)  # 16 of 1000
IMAGE_SUFFIXES = 24


def errors(better: float | np.ndarray, draw: str, timesteps: np.ndarray = TIMESTEPS) -> np.ndarray:
    """Errors [N, K] of a run: images differ far more than runs do. better: share by which they are lower, or [K]."""
    images = np.random.default_rng(7).lognormal(0, 0.5, (IMAGE_SUFFIXES, 1))
    noise = np.random.default_rng(zlib.crc32(draw.encode())).normal(0, 0.02, (IMAGE_SUFFIXES, len(timesteps)))
    return 0.2 * images * np.exp(-timesteps / 400 + noise) * (1 - better)


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
    """A run of 200 steps, by which its errors fall by 30 % and `better`. info: further fields of run.json."""
    typed = dict(override.split("=", 1) for override in overrides)
    loss = typed.pop("loss", "minsnr")
    config = {
        "seed": 0, "steps": 200, "run": None, "sweep": "made_up", "sample_every": 100, "num_workers": 0,
        "loss": {"_target_": TARGETS.get(loss, loss)} | ({"snr_gamma": 5.0} if loss == "minsnr" else {}),
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 7e-4, "betas": [0.9, 0.999]},
        "samples": {"prompts": PROMPTS, "seed": 0},
    }  # fmt: skip
    config = OmegaConf.merge(config, OmegaConf.from_dotlist([f"{key}={value}" for key, value in typed.items()]))
    for part in ("validation", "samples"):
        (folder / part).mkdir(parents=True)
    OmegaConf.save(config, folder / "config.yaml")
    lines = [_validate(folder, step, better, averaged, hours, timesteps) for step in validated]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    facts = {
        "state": state, "started": "2026-01-01T00:00:00+0000", "code_revision": "abc", "device": "cpu",
        "choices": {"loss": loss, "optimizer": "adamw"}, "overrides": list(overrides),
        "battery": {"hash": "one", "timesteps": timesteps.tolist(), "snr": (1e3 * np.exp(-timesteps / 80)).tolist()},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(facts | info))
    return folder


def _validate(
    folder: Path, step: int, better: float | np.ndarray, averaged: bool, hours: bool, timesteps: np.ndarray
) -> dict[str, float]:
    """Write the errors and the samples of a step; returns the line of metrics.jsonl."""
    found = {"": errors((0.3 + better) * step / 200, folder.name if step else "the start", timesteps)}
    if averaged:
        found["ema/"] = 0.98 * found[""] if step else found[""]
    columns = {
        "item": np.repeat(np.arange(IMAGE_SUFFIXES), len(timesteps)),
        "timestep": np.tile(timesteps, IMAGE_SUFFIXES),
    }
    columns |= {f"{weights.replace('/', '_')}eps": values.ravel() for weights, values in found.items()}
    pq.write_table(pa.table(columns), folder / "validation" / f"step-{step:06d}.parquet")
    pixels = np.random.default_rng(step).integers(0, 256, (16, 16 * len(PROMPTS), 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "samples" / f"step-{step:06d}.png")
    line = {"step": step, "memory/peak_gb": 2.5} | ({"speed/hours": step / 100} if hours else {})
    for weights, values in found.items():
        line |= {metric.name: metric.value(values) for metric in all_metrics(weights, len(timesteps))}
    return line | ({"train/loss": 0.5, "speed/images_per_second": 50.0} if step else {})
