"""The forward process: x_t = alpha_t · x0 + sigma_t · noise, and what the denoiser is asked to predict.

Symbols follow the papers: x0 clean latents, t timestep, SNR = alpha² / sigma² (Kingma et al. 2021, "Variational
diffusion models"). Shapes: x0, noise, x and target are [B, C, H, W]; t, time, snr and x0_scale are [B].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from t2i.config import ConfigError
from t2i.diffusion.shift import Shift
from t2i.hardware.uploads import Uploaded, upload

# The smallest alpha² from which predicting epsilon teaches anything; Diffusers may leave less at zero terminal SNR.
SMALLEST_SIGNAL = 1e-6
# A flow's times end so far from 0 and 1: float32 can't tell times nearer to 1 apart.
EDGE = 2.0**-20
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction")


class NoiseScheduler(Protocol):
    """A scheduler of Diffusers: its settings, and `alphas_cumprod`, [T], if it has a schedule of betas."""

    @property
    def config(self) -> Any: ...


@dataclass(frozen=True)
class Noised:
    """A noised batch, with everything that a loss may use.

    `x0_scale` is the factor from squared prediction error to squared x0 error: with it a weighting w(SNR) on the x0
    error can be written once for all prediction types.
    """

    x: Tensor
    t: Tensor  # the timestep: an integer, or a real number below T in continuous time
    time: Tensor  # what the denoiser is conditioned on: t, or T times the noise level of a flow
    target: Tensor
    snr: Tensor
    x0_scale: Tensor


@dataclass(frozen=True)
class Levels:
    """Noise levels of a batch, each [B]; the fields are those of `Noised`."""

    alpha: Tensor
    sigma: Tensor
    t: Tensor
    time: Tensor
    snr: Tensor
    x0_scale: Tensor


class Diffusion:
    """The forward process of a noise schedule, given as tables over its T timesteps, from nearly clean to nearly noise.

    alpha, sigma: [T] in float64. time: [T], what the denoiser is conditioned on at each timestep.
    """

    continuous = False  # whether t may be any real number

    def __init__(self, alpha: Tensor, sigma: Tensor, time: Tensor, prediction_type: str):
        if prediction_type not in PREDICTION_TYPES:
            raise ConfigError(
                f"scheduler.prediction_type={prediction_type} is not known; choose from {', '.join(PREDICTION_TYPES)}"
            )
        if prediction_type == "epsilon" and bool((alpha**2 < SMALLEST_SIGNAL).any()):
            raise ConfigError(
                "the noise schedule ends at zero signal (zero terminal SNR), where predicting epsilon teaches nothing; "
                "use scheduler.prediction_type=v_prediction"
            )
        self.alpha, self.sigma, self.time, self.prediction_type = alpha, sigma, time, prediction_type
        self._tables = [Uploaded(table) for table in (alpha, sigma, self.snr, self.x0_scale)]
        self._time = Uploaded(time)

    @classmethod
    def from_scheduler(cls, scheduler: NoiseScheduler, continuous_time: bool = True) -> "Diffusion":
        """The process of a Diffusers scheduler, after any rescaling or shift; ConfigError if it has no schedule.

        continuous_time: whether a flow has all times between image and noise, or the scheduler's timesteps only.
        """
        config = scheduler.config
        num_timesteps = config.num_train_timesteps
        if hasattr(scheduler, "alphas_cumprod") and not config.get("use_flow_sigmas"):
            alpha_squared = scheduler.alphas_cumprod.double()
            time = torch.arange(num_timesteps)
            return cls(alpha_squared.sqrt(), (1 - alpha_squared).sqrt(), time, config.get("prediction_type", "epsilon"))
        shift = Shift.from_config(config)
        if shift is None:
            name = type(scheduler).__name__
            raise ConfigError(f"scheduler: {name} has no noise schedule to train with; use scheduler=ddpm")
        if config.get("invert_sigmas"):
            raise ConfigError("scheduler: invert_sigmas=true swaps image and noise; use a scheduler without it")
        return Flow(num_timesteps, shift, continuous_time)

    def for_model(self, patch_size: int, mu: Callable[[float], float] | None = None) -> "Diffusion":
        """The process for a model that takes squares of patch_size × patch_size latents as tokens.

        mu: how the model's own pipeline finds the shift of so many tokens, where the scheduler's file does not say it.
        """
        return self

    def __len__(self) -> int:
        return len(self.alpha)

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio of each timestep, [T] in float64."""
        return (self.alpha / self.sigma).square()

    @property
    def x0_scale(self) -> Tensor:
        """Squared x0 error per unit of squared prediction error, at each timestep, [T] in float64."""
        return self._x0_scale(self.snr, self.sigma)

    def _x0_scale(self, snr: Tensor, sigma: Tensor) -> Tensor:
        if self.prediction_type == "epsilon":
            return 1 / snr
        if self.prediction_type in ("v_prediction", "flow_prediction"):  # v: alpha² + sigma² = 1
            return sigma.square()
        return torch.ones_like(sigma)

    @property
    def log_snr_range(self) -> tuple[float, float]:
        """The lowest and the highest log-SNR that the process has; the end of zero SNR is left out."""
        log_snr = self.snr[self.snr > 0].log()
        return float(log_snr[-1]), float(log_snr[0])

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The right prediction; v = alpha · noise − sigma · x0 (Salimans & Ho 2022, appendix D)."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "v_prediction":
            return alpha * noise - sigma * x0
        if self.prediction_type == "sample":
            return x0
        return noise - x0  # flow_prediction

    def levels(self, t: Tensor, x0: Tensor) -> Levels:
        """The noise levels of timesteps t, [B], in the type and on the device of x0."""
        alpha, sigma, snr, x0_scale = (table.to(x0.device, x0.dtype)[t] for table in self._tables)
        return Levels(alpha, sigma, t, self._time.to(x0.device)[t], snr, x0_scale)

    def levels_at(self, log_snr: Tensor) -> Levels:
        """The noise levels of log-SNRs, [B] in float64 on the CPU, which must lie in `log_snr_range`.

        Between two timesteps, t is the real number at which the log-SNR, interpolated linearly, has the value.
        """
        has_signal = self.snr > 0
        table, steps = self.snr[has_signal].log().flip(0), torch.arange(len(self))[has_signal].flip(0)
        t = torch.from_numpy(np.interp(log_snr.numpy(), table.numpy(), steps.numpy()))
        alpha, sigma, snr = log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt(), log_snr.exp()
        return Levels(alpha, sigma, t, t.float(), snr, self._x0_scale(snr, sigma))

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor, input_noise: Tensor | None = None) -> Noised:
        """Add the noise of timesteps t, [B], to x0. `input_noise` replaces `noise` in the input, not in the target."""
        return self._noised(x0, noise, self.levels(t, x0), input_noise)

    def add_noise_at(self, x0: Tensor, noise: Tensor, log_snr: Tensor) -> Noised:
        """Add noise to x0 so that the log-SNR is as given, [B] in float64 on the CPU."""
        exact = self.levels_at(log_snr)
        cast = {name: upload(value.to(x0.dtype), x0.device) for name, value in vars(exact).items()}
        return self._noised(x0, noise, Levels(**cast | {"time": upload(exact.time, x0.device)}))

    def _noised(self, x0: Tensor, noise: Tensor, levels: Levels, input_noise: Tensor | None = None) -> Noised:
        alpha, sigma = levels.alpha[:, None, None, None], levels.sigma[:, None, None, None]
        x = alpha * x0 + sigma * (noise if input_noise is None else input_noise)
        target = self.target(x0, noise, alpha, sigma)
        return Noised(x, levels.t, levels.time, target, levels.snr, levels.x0_scale)


class Flow(Diffusion):
    """Rectified flow: x = (1 − sigma) x0 + sigma · noise (Liu et al. 2022, arXiv 2209.03003), sigma from a `Shift`.

    In continuous time, t is any real number from 0 to T, and the tables hold the middles of T equal parts. Otherwise
    they hold the ends of the parts, as the tables of Diffusers do, and t is an integer. Where the shift depends on the
    image, the tables are those of the longest sequence.
    """

    def __init__(self, num_timesteps: int, shift: Shift, continuous: bool, patch_size: int = 1):
        self.shift, self.continuous, self.patch_size = shift, continuous, patch_size
        if shift.by_length and not continuous:
            raise ConfigError(
                "continuous_time=false has one table of noise levels, but this scheduler's depend on the image "
                "(use_dynamic_shifting); use continuous_time=true, or scheduler.shift=3 for a constant shift"
            )
        u = (torch.arange(num_timesteps).double() + (0.5 if continuous else 1)) / num_timesteps
        sigma = shift(u)
        super().__init__(1 - sigma, sigma, (sigma * num_timesteps).float(), "flow_prediction")

    def for_model(self, patch_size: int, mu: Callable[[float], float] | None = None) -> "Flow":
        return Flow(len(self), replace(self.shift, mu=mu), self.continuous, patch_size)

    @property
    def log_snr_range(self) -> tuple[float, float]:
        terminal = self.shift.terminal
        return -math.inf, 2 * math.log((1 - terminal) / terminal) if terminal else math.inf

    def levels(self, t: Tensor, x0: Tensor) -> Levels:
        if not self.continuous:
            return super().levels(t, x0)
        middle = 0.0 if t.is_floating_point() else 0.5
        u = ((t.to(x0.dtype) + middle) / len(self)).clamp(EDGE, 1 - EDGE)
        return self._levels(self.shift(u, x0.shape[-2] * x0.shape[-1] / self.patch_size**2), t)

    def levels_at(self, log_snr: Tensor) -> Levels:
        """√SNR = (1 − sigma) / sigma, so sigma is the sigmoid of −log-SNR / 2, whatever the shift."""
        sigma = (-log_snr / 2).sigmoid()
        return self._levels(sigma, sigma * len(self))

    def _levels(self, sigma: Tensor, t: Tensor) -> Levels:
        alpha = 1 - sigma
        snr = (alpha / sigma).square()
        return Levels(alpha, sigma, t, (sigma * len(self)).float(), snr, self._x0_scale(snr, sigma))
