"""The validation metrics that runs are compared by: the errors that each one averages, and how."""

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from t2i.config import ConfigError

NUM_SNR_BINS = 8
PATTERN = re.compile(
    r"(?!ref/.*(?:train_|gap)|.*train_gap)"  # there are none of these
    r"(?P<root>val|ref)/(?P<averaged>ema/)?(?P<train>train_)?"
    r"(?:(?P<headline>loss)|(?P<gap>gap)|eps_mse|snr_bin_(?P<snr_bin>\d+)/eps)"
)


def snr_bins(num_timesteps: int) -> list[np.ndarray]:
    """Indices of neighbouring noise levels in a list from clean to noisy, for each bin; bin 0 is the noisiest."""
    return np.array_split(np.arange(num_timesteps)[::-1], min(NUM_SNR_BINS, num_timesteps))


@dataclass(frozen=True)
class Metric:
    """A validation metric: the smaller, the better."""

    name: str  # as in metrics.jsonl
    prefix: str  # of its errors: a battery ("", train/ or ref/), then "" for raw weights, "ema/" for averaged ones
    mean: str  # over the noise levels: geometric or arithmetic
    snr_bin: int | None = None
    against: str | None = None  # of a gap: the prefix of the errors that it is relative to
    sign: ClassVar[int] = 1  # the smaller, the better; metrics of images may have -1
    relative: ClassVar[bool] = True  # differences are fractions; those of metrics of images are not

    @classmethod
    def named(cls, name: str) -> "Metric":
        """val/loss, val/eps_mse or val/snr_bin_3/eps, or the same under val/ema/; val/train_loss, val/gap, ref/loss."""
        match = PATTERN.fullmatch(name)
        if match is None or int(match["snr_bin"] or 0) >= NUM_SNR_BINS:
            raise ConfigError(
                f"--metric {name} can't be compared image by image; choose val/loss, val/eps_mse, "
                f"val/snr_bin_0/eps (the noisiest) to val/snr_bin_{NUM_SNR_BINS - 1}/eps, or one of them as "
                "val/ema/...; where they were measured, val/train_loss, val/gap or ref/loss"
            )
        battery = "ref/" if match["root"] == "ref" else "train/" if match["train"] else ""
        averaged = match["averaged"] or ""
        return cls(
            name,
            prefix=f"{battery}{averaged}",
            mean="geometric" if match["headline"] or match["gap"] else "arithmetic",
            snr_bin=None if match["snr_bin"] is None else int(match["snr_bin"]),
            against=f"train/{averaged}" if match["gap"] else None,
        )

    @property
    def logged(self) -> str:
        """Its name in metrics.jsonl."""
        return self.name

    @property
    def averaged(self) -> bool:
        """Whether the metric is of averaged weights."""
        return self.prefix.endswith("ema/")

    @property
    def twin(self) -> "Metric":
        """The same metric of the other weights: averaged for raw ones, raw for averaged ones."""
        root, _, bare = self.name.partition("/")
        return Metric.named(f"{root}/{bare.removeprefix('ema/')}" if self.averaged else f"{root}/ema/{bare}")

    def measured_in(self, errors: Container[str]) -> bool:
        """Whether errors of these prefixes are enough to compute it."""
        return self.prefix in errors and (self.against is None or self.against in errors)

    def of(self, errors: Mapping[str, np.ndarray]) -> float:
        """The metric of one run from its errors, [N, K], by prefix."""
        value = self.value(errors[self.prefix])
        return value if self.against is None else float(np.log(value / self.value(errors[self.against])))

    def ratio(self, ours: ArrayLike, theirs: ArrayLike) -> Any:
        """The relative difference of two values of the metric; of gaps, which are logarithms, that of the ratios."""
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        return ours / theirs - 1 if self.against is None else np.expm1(ours - theirs)

    def moved(self, value: float, ratio: ArrayLike) -> Any:
        """The value that has this relative difference from `value`: the inverse of `ratio`."""
        return value * (1 + np.asarray(ratio)) if self.against is None else value + np.log1p(ratio)

    def part(self, errors: np.ndarray) -> np.ndarray:
        """The errors of the noise levels that the metric averages, [..., K'] of [..., K]."""
        return errors if self.snr_bin is None else errors[..., snr_bins(errors.shape[-1])[self.snr_bin]]

    def value(self, errors: np.ndarray) -> float:
        """The mean that the metric takes of errors, [N, K]."""
        per_timestep = self.part(errors).mean(0)
        return float(np.exp(np.log(per_timestep).mean()) if self.mean == "geometric" else per_timestep.mean())


def bin_metrics(prefix: str, num_timesteps: int) -> list[Metric]:
    """One for each SNR bin of a battery, noisiest first."""
    start = _start(prefix)
    return [Metric.named(f"{start}snr_bin_{i}/eps") for i in range(len(snr_bins(num_timesteps)))]


def all_metrics(prefix: str, num_timesteps: int) -> list[Metric]:
    """Every metric of these errors that can be compared: the headline; of held-out images also the mean and bins."""
    headline = Metric.named(f"{_start(prefix)}loss")
    if prefix not in ("", "ema/"):
        return [headline]
    return [headline, Metric.named(f"val/{prefix}eps_mse"), *bin_metrics(prefix, num_timesteps)]


def gap_metrics() -> list[Metric]:
    """The gap between held-out and training images, of raw and averaged weights."""
    return [Metric.named("val/gap"), Metric.named("val/ema/gap")]


def _start(prefix: str) -> str:
    """What the names of the metrics of these errors begin with: val/ema/train_ for train/ema/."""
    battery, slash, rest = prefix.rpartition("ema/")
    return {"": f"val/{slash}", "train/": f"val/{slash}train_", "ref/": f"ref/{slash}"}[battery or rest]
