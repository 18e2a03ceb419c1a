"""The validation metrics that runs are compared by: the errors that each one averages, and how."""

import re
from dataclasses import dataclass

import numpy as np

from t2i.config import ConfigError

NUM_SNR_BINS = 8
PATTERN = re.compile(r"val/(ema/)?(?:(loss)|(eps_mse)|snr_bin_(\d+)/eps)")


def snr_bins(num_timesteps: int) -> list[np.ndarray]:
    """Indices of neighbouring noise levels in a list from clean to noisy, for each bin; bin 0 is the noisiest."""
    return np.array_split(np.arange(num_timesteps)[::-1], min(NUM_SNR_BINS, num_timesteps))


@dataclass(frozen=True)
class Metric:
    """A validation metric: the smaller, the better."""

    name: str  # as in metrics.jsonl
    prefix: str  # of the name, after val/: "" for raw weights, "ema/" for averaged ones
    mean: str  # over the noise levels: geometric or arithmetic
    snr_bin: int | None = None

    @classmethod
    def named(cls, name: str) -> "Metric":
        """val/loss, val/eps_mse or val/snr_bin_3/eps, or the same under val/ema/."""
        match = PATTERN.fullmatch(name)
        if match is None or int(match[4] or 0) >= NUM_SNR_BINS:
            raise ConfigError(
                f"--metric {name} can't be compared image by image; choose val/loss, val/eps_mse, "
                f"val/snr_bin_0/eps (the noisiest) to val/snr_bin_{NUM_SNR_BINS - 1}/eps, or one of them as val/ema/..."
            )
        averaged, headline, _, snr_bin = match.groups()
        mean = "geometric" if headline else "arithmetic"
        return cls(name, averaged or "", mean, None if snr_bin is None else int(snr_bin))

    @property
    def averaged(self) -> bool:
        """Whether the metric is of averaged weights."""
        return self.prefix == "ema/"

    @property
    def twin(self) -> "Metric":
        """The same metric of the other weights: averaged for raw ones, raw for averaged ones."""
        bare = self.name.removeprefix(f"val/{self.prefix}")
        return Metric.named(f"val/{bare}" if self.averaged else f"val/ema/{bare}")

    def part(self, errors: np.ndarray) -> np.ndarray:
        """The errors of the noise levels that the metric averages, [..., K'] of [..., K]."""
        return errors if self.snr_bin is None else errors[..., snr_bins(errors.shape[-1])[self.snr_bin]]

    def value(self, errors: np.ndarray) -> float:
        """The metric of one run from its errors, [N, K]."""
        per_timestep = self.part(errors).mean(0)
        return float(np.exp(np.log(per_timestep).mean()) if self.mean == "geometric" else per_timestep.mean())


def bin_metrics(prefix: str, num_timesteps: int) -> list[Metric]:
    """One for each SNR bin of a battery, noisiest first."""
    return [Metric.named(f"val/{prefix}snr_bin_{i}/eps") for i in range(len(snr_bins(num_timesteps)))]


def all_metrics(prefix: str, num_timesteps: int) -> list[Metric]:
    """Every metric that can be compared: the headline, the plain mean and the bins."""
    names = (f"val/{prefix}loss", f"val/{prefix}eps_mse")
    return [*map(Metric.named, names), *bin_metrics(prefix, num_timesteps)]
