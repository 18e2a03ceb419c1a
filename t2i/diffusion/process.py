"""The forward process: x_t = alpha_t · x0 + sigma_t · noise, and what the denoiser is asked to predict.

Symbols follow the papers: x0 clean latents, t timestep, SNR = alpha² / sigma² (Kingma et al. 2021, "Variational
diffusion models"). Shapes: x0, noise, x and target are [B, C, H, W]; t, time, snr and x0_scale are [B].
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from t2i.config import ConfigError

# The smallest alpha² from which predicting epsilon teaches anything; Diffusers may leave less at zero terminal SNR.
SMALLEST_SIGNAL = 1e-6
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
    t: Tensor  # index of the timestep
    time: Tensor  # what the denoiser is conditioned on: t, or the noise level of a flow
    target: Tensor
    snr: Tensor
    x0_scale: Tensor


class Diffusion:
    """The forward process of a noise schedule, given as tables over its T timesteps, from nearly clean to nearly noise.

    alpha, sigma: [T] in float64. time: [T], what the denoiser is conditioned on at each timestep.
    """

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

    @classmethod
    def from_scheduler(cls, scheduler: NoiseScheduler) -> "Diffusion":
        """The process of a Diffusers scheduler, after any rescaling or shift; ConfigError if it has no schedule."""
        config = scheduler.config
        num_timesteps = config.num_train_timesteps
        if hasattr(scheduler, "alphas_cumprod") and not config.get("use_flow_sigmas"):
            alpha_squared = scheduler.alphas_cumprod.double()
            time = torch.arange(num_timesteps)
            return cls(alpha_squared.sqrt(), (1 - alpha_squared).sqrt(), time, config.get("prediction_type", "epsilon"))
        shift = config.get("flow_shift", config.get("shift"))
        if shift is None:
            name = type(scheduler).__name__
            raise ConfigError(f"scheduler: {name} has no noise schedule to train with; use scheduler=ddpm")
        # Rectified flow: x = (1 − sigma) x0 + sigma noise (Liu et al. 2022; the shift: Esser et al. 2024, equation 23).
        sigma = torch.arange(1, num_timesteps + 1).double() / num_timesteps
        sigma = shift * sigma / (1 + (shift - 1) * sigma)
        return cls(1 - sigma, sigma, (sigma * num_timesteps).float(), "flow_prediction")

    def __len__(self) -> int:
        return len(self.alpha)

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio of each timestep, [T] in float64."""
        return (self.alpha / self.sigma).square()

    @property
    def x0_scale(self) -> Tensor:
        """Squared x0 error per unit of squared prediction error, at each timestep, [T] in float64."""
        if self.prediction_type == "epsilon":
            return 1 / self.snr
        if self.prediction_type in ("v_prediction", "flow_prediction"):  # v: alpha² + sigma² = 1
            return self.sigma.square()
        return torch.ones_like(self.sigma)

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The right prediction; v = alpha · noise − sigma · x0 (Salimans & Ho 2022, appendix D)."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "v_prediction":
            return alpha * noise - sigma * x0
        if self.prediction_type == "sample":
            return x0
        return noise - x0  # flow_prediction

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor, input_noise: Tensor | None = None) -> Noised:
        """Add the noise of timesteps t, [B], to x0. `input_noise` replaces `noise` in the input, not in the target."""

        def at_t(table: Tensor) -> Tensor:
            return table.to(x0.dtype).to(x0.device)[t]  # cast first: not every device has float64

        alpha, sigma = at_t(self.alpha)[:, None, None, None], at_t(self.sigma)[:, None, None, None]
        x = alpha * x0 + sigma * (noise if input_noise is None else input_noise)
        time = self.time.to(x0.device)[t]
        return Noised(x, t, time, self.target(x0, noise, alpha, sigma), at_t(self.snr), at_t(self.x0_scale))
