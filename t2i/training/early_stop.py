"""Early stopping: a run ends when its validation has not improved for some time (Prechelt 1998, "Early stopping")."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

from omegaconf import DictConfig

from t2i.config import ConfigError


@dataclass(frozen=True)
class EarlyStop:
    """The run ends at the `patience`-th validation in a row that is no better than the best one before.

    patience: None never ends it. metric: what has to fall, a metric of the validation.
    What it decides is a function of metrics.jsonl, so a resumed run decides as the uninterrupted one.
    """

    patience: int | None
    metric: str

    def verdict(self, lines: Iterable[Mapping[str, float]]) -> dict[str, Any] | None:
        """Why the run ends at the last of these lines of metrics.jsonl, for run.json; None if it goes on."""
        if self.patience is None:
            return None
        measured = [(int(line["step"]), line[self.metric]) for line in lines if self.metric in line]
        if not measured:
            return None
        best = min(range(len(measured)), key=lambda place: measured[place][1] if isfinite(measured[place][1]) else inf)
        if len(measured) - 1 - best < self.patience:
            return None
        (step, value), (best_step, best_value) = measured[-1], measured[best]
        return {
            "step": step,
            "metric": self.metric,
            "value": value,
            "best_step": best_step,
            "best_value": best_value,
            "patience": self.patience,
        }


def early_stop_of(cfg: DictConfig, averages: bool) -> EarlyStop:
    """That of a configuration. ConfigError if its metric is not measured. averages: whether weights are averaged."""
    rule, validation = EarlyStop(**cfg.early_stop), cfg.validation
    if rule.patience is None:
        return rule
    if not cfg.validate_every:
        raise ConfigError(f"early_stop.patience={rule.patience} counts validations, and validate_every=0 makes none")
    on_training_images = validation.images == "train" or validation.train_items > 0
    measured = {
        "val/{}loss": validation.images == "held_out",
        "val/{}train_loss": on_training_images,
        "val/{}gap": validation.train_items > 0,
        "val/{}gap_since_start": validation.train_items > 0,
        "ref/{}loss": validation.reference is not None,
    }
    weights = ("", "ema/") if averages else ("",)
    names = [name.format(kind) for name, is_measured in measured.items() if is_measured for kind in weights]
    if rule.metric not in names:
        raise ConfigError(
            f"early_stop.metric={rule.metric} is not measured in this run; choose from {', '.join(names)} "
            "(validation.train_items and validation.reference add others)"
        )
    return rule


def in_words(stopped: Mapping[str, Any], steps: int) -> str:
    """What early stopping did, for the log. steps: as many as the learning-rate schedule was made for."""
    return (
        f"stopped early at step {stopped['step']} of {steps}: {stopped['metric']} has not improved in "
        f"{stopped['patience']} validations ({stopped['value']:.5f}; the best was {stopped['best_value']:.5f} at step "
        f"{stopped['best_step']}). The learning-rate schedule has not ended, and the exported weights are those of "
        "this step"
    )
