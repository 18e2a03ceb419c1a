"""At which noise levels the battery measures: at fixed log-SNRs, or at timesteps of the run's own schedule."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from t2i.config import ConfigError
from t2i.diffusion.process import Diffusion, Noised
from t2i.hardware.uploads import upload


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a battery consists of besides its noise levels."""

    images: str  # fingerprint of the held-out split
    autoencoder: str  # hash of it
    encodings: str  # hash of both, as the cache is addressed by
    chosen: list[int]  # which held-out images
    seed: int  # of the noise


class NoiseLevels(Protocol):
    """K noise levels, the cleanest first."""

    name: ClassVar[str]  # what `values` are

    @property
    def values(self) -> np.ndarray:
        """[K], in the units of the name."""
        ...

    def add_noise(self, diffusion: Diffusion, x0: Tensor, noise: Tensor, places: np.ndarray) -> Noised:
        """x0 with noise; the n-th image at the level of the n-th place, [B]."""
        ...

    def snr(self, diffusion: Diffusion) -> np.ndarray:
        """Signal-to-noise ratio, [K] in float64."""
        ...

    def to_epsilon(self, diffusion: Diffusion) -> Tensor:
        """Squared epsilon error per unit of squared prediction error, [K] in float64."""
        ...

    def to_v(self, diffusion: Diffusion) -> np.ndarray:
        """Squared v error per unit of squared x0 error, [K] in float64."""
        ...

    def describe(self, diffusion: Diffusion, origin: Origin) -> dict[str, Any]:
        """What run.json says of the battery; runs can be compared if `hash` is the same."""
        ...

    def as_begun(self, battery: Mapping[str, Any]) -> "NoiseLevels":
        """The same levels for a run that goes on. battery: what its run.json says."""
        ...


@dataclass(frozen=True, eq=False)
class LogSNRs:
    """The same log-SNRs for every process, which meets a level where its own log-SNR has the value."""

    values: np.ndarray
    name: ClassVar[str] = "log_snr"

    @classmethod
    def spread(cls, low: float, high: float, number: int) -> "LogSNRs":
        """The middles of `number` equal parts of the range, the cleanest first."""
        return cls(high - (np.arange(number) + 0.5) / number * (high - low))

    def check(self, diffusion: Diffusion) -> None:
        """Refuse levels that the process does not have, by name."""
        low, high = diffusion.log_snr_range
        if outside := [f"{value:.3g}" for value in self.values if not low <= value <= high]:
            raise ConfigError(
                f"validation.log_snr: this noise schedule has log-SNRs from {low:.2f} to {high:.2f}, so it can't be "
                f"measured at {', '.join(outside)}; use a narrower validation.log_snr, the same in all runs to compare"
            )

    def add_noise(self, diffusion: Diffusion, x0: Tensor, noise: Tensor, places: np.ndarray) -> Noised:
        return diffusion.add_noise_at(x0, noise, torch.from_numpy(self.values[places]))

    def snr(self, diffusion: Diffusion) -> np.ndarray:
        return np.exp(self.values)

    def to_epsilon(self, diffusion: Diffusion) -> Tensor:
        levels = diffusion.levels_at(torch.from_numpy(self.values))
        return levels.snr * levels.x0_scale

    def to_v(self, diffusion: Diffusion) -> np.ndarray:
        return 1 + np.exp(self.values)  # 1 / sigma² where alpha² + sigma² = 1, whatever the process predicts

    def describe(self, diffusion: Diffusion, origin: Origin) -> dict[str, Any]:
        facts = {
            "items": len(origin.chosen),
            "seed": origin.seed,
            "images": _hash(f"{origin.images} {origin.chosen}".encode()),
            "autoencoder": origin.autoencoder,
            "log_snr": self.values.tolist(),
        }
        return {"hash": _hash(json.dumps(facts).encode()), **facts}

    def as_begun(self, battery: Mapping[str, Any]) -> "LogSNRs":
        return self


@dataclass(frozen=True, eq=False)
class Timesteps:
    """Timesteps of the schedule: runs with different schedules meet different noise, and can't be compared."""

    values: np.ndarray
    begun: np.ndarray | None = None  # SNRs as the machine computed them on which the run began
    name: ClassVar[str] = "timestep"

    @classmethod
    def spread(cls, diffusion: Diffusion, number: int) -> "Timesteps":
        """The middles of `number` equal parts of the schedule, without those that have no signal."""
        t = ((np.arange(number) + 0.5) * len(diffusion) / number).astype(np.int64)
        return cls(t[diffusion.snr.numpy()[t] > 0])

    def add_noise(self, diffusion: Diffusion, x0: Tensor, noise: Tensor, places: np.ndarray) -> Noised:
        return diffusion.add_noise(x0, noise, upload(torch.from_numpy(self.values[places]), x0.device))

    def snr(self, diffusion: Diffusion) -> np.ndarray:
        return diffusion.snr.numpy()[self.values]

    def to_epsilon(self, diffusion: Diffusion) -> Tensor:
        return (diffusion.snr * diffusion.x0_scale)[torch.from_numpy(self.values)]

    def to_v(self, diffusion: Diffusion) -> np.ndarray:
        alpha, sigma = diffusion.alpha.numpy()[self.values], diffusion.sigma.numpy()[self.values]
        return ((alpha**2 + sigma**2) / sigma) ** 2

    def describe(self, diffusion: Diffusion, origin: Origin) -> dict[str, Any]:
        t, snr = self.values.tolist(), self.snr(diffusion)
        if self.begun is not None and self.begun.shape == snr.shape and np.allclose(self.begun, snr, rtol=1e-9, atol=0):
            snr = self.begun  # processors round differently, and the hash is of all digits
        identity = repr((origin.encodings, origin.chosen, t, origin.seed)).encode() + snr.tobytes()
        return {"hash": _hash(identity), "items": len(origin.chosen), "timesteps": t, "snr": snr.tolist()}

    def as_begun(self, battery: Mapping[str, Any]) -> "Timesteps":
        snr = battery.get("snr")
        is_known = isinstance(snr, list) and all(isinstance(value, float) for value in snr)
        return replace(self, begun=np.array(snr)) if is_known else self


def choose_levels(diffusion: Diffusion, timesteps: int, log_snr: Sequence[float] | None) -> NoiseLevels:
    """`timesteps` noise levels in the range `log_snr`, or else of the schedule; ConfigError if it lacks one of them."""
    if log_snr is None:
        return Timesteps.spread(diffusion, timesteps)
    levels = LogSNRs.spread(*log_snr, number=timesteps)
    levels.check(diffusion)
    return levels


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
