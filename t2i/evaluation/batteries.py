"""The batteries of a run: of held-out images, of images that are trained on, and of what the base could do before.

A battery is named by the prefix of its errors: "" for held-out images, "train/" and "ref/" (see t2i.runs.records). Its
headline is logged as val/loss, val/train_loss or ref/loss.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import log

import numpy as np
from accelerate import Accelerator

from t2i.data.held_out import Fold
from t2i.diffusion.process import Diffusion
from t2i.evaluation.battery import Battery, evaluate
from t2i.models.model import Model
from t2i.optim.ema import WeightAverage
from t2i.runs.records import HEADLINES

HELD_OUT, TRAIN, REFERENCE = HEADLINES


def evaluate_all(
    batteries: Mapping[str, Battery],
    model: Model,
    diffusion: Diffusion,
    ema: WeightAverage,
    accelerator: Accelerator,
    step: int,
) -> tuple[dict[str, float], dict[str, dict[str, np.ndarray]]]:
    """The metrics of all batteries, and by battery the errors [N, K] as `evaluate` returns them.

    Of held-out images, all metrics of `evaluate`; of the others only the headline, as their errors are stored.
    """
    metrics: dict[str, float] = {}
    errors = {}
    for name, battery in batteries.items():
        measured, errors[name] = evaluate(battery, model, diffusion, ema, accelerator, step)
        headlines = {HEADLINES[name].format(prefix): measured[f"val/{prefix}loss"] for prefix in errors[name]}
        metrics |= measured if name == HELD_OUT else headlines
    return metrics | gaps(metrics), errors


def gaps(metrics: Mapping[str, float]) -> dict[str, float]:
    """val/gap and val/ema/gap: log(val/loss / val/train_loss), where both were measured.

    A logarithm, so that gaps can be subtracted: 0.1 is a held-out error that is 10 % higher than the other. The two
    sets of images differ, so the base has a gap already; what counts is the change since step 0.
    """
    return {
        f"val/{prefix}gap": log(metrics[f"val/{prefix}loss"] / metrics[f"val/{prefix}train_loss"])
        for prefix in ("", "ema/")
        if {f"val/{prefix}loss", f"val/{prefix}train_loss"} <= metrics.keys()
    }


def gaps_since_start(metrics: Mapping[str, float], at_start: Mapping[str, float]) -> dict[str, float]:
    """val/gap_since_start, and the same of averaged weights: by how much the gap has grown since step 0.

    Above 0, the training images have gained more than held-out ones: what was learned of them does not carry over.
    """
    names = [name for name in ("val/gap", "val/ema/gap") if name in metrics and name in at_start]
    return {f"{name}_since_start": metrics[name] - at_start[name] for name in names}


def of_training_images(battery: Battery) -> Battery:
    """The same battery, marked as one of images that are trained on."""
    return replace(battery, facts=battery.facts | {"on": "train"})


def of_fold(battery: Battery, fold: Fold | None) -> Battery:
    """The same battery, marked as that of a fold, if there are any."""
    if fold is None:
        return battery
    folds = {"number": fold.number, "images": fold.images}
    return replace(battery, facts=battery.facts | {"folds": folds, "fold": fold.index})
