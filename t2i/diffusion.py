"""The forward process: x_t = alpha_t · x0 + sigma_t · noise, and what the denoiser is asked to predict.

Symbols follow the papers: x0 clean latents, t timestep, SNR = alpha² / sigma² (Kingma et al. 2021, "Variational diffusion
models"). Shapes: x0, noise, x and target are [B, C, H, W]; t, snr and x0_scale are [B].
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class Noised:
    """A noised batch, with all that a loss may ask for.

    `x0_scale` is the factor from squared prediction error to squared x0 error: with it a weighting w(SNR) on the x0 error
    can be written once for all prediction types.
    """

    x: Tensor
    t: Tensor
    target: Tensor
    snr: Tensor
    x0_scale: Tensor


class Diffusion:
    """The forward process of a noise schedule, given as tables alpha and sigma, [T] in float64."""

    def __init__(self, alpha: Tensor, sigma: Tensor, prediction_type: str):
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"scheduler.prediction_type={prediction_type} is not known; choose from {', '.join(PREDICTION_TYPES)}"
            )
        if prediction_type == "epsilon" and bool((alpha == 0).any()):
            raise ValueError(
                "the noise schedule ends at zero signal (zero terminal SNR), where predicting epsilon teaches nothing; "
                "use scheduler.prediction_type=v_prediction"
            )
        self.alpha, self.sigma, self.prediction_type = alpha, sigma, prediction_type

    @classmethod
    def from_scheduler(cls, scheduler) -> "Diffusion":
        """The process of a Diffusers noise scheduler, read from its `alphas_cumprod` (after any rescaling)."""
        alpha_squared = scheduler.alphas_cumprod.double()
        return cls(alpha_squared.sqrt(), (1 - alpha_squared).sqrt(), scheduler.config.prediction_type)

    def __len__(self) -> int:
        return len(self.alpha)

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio of each timestep, [T] in float64."""
        return (self.alpha / self.sigma).square()

    @property
    def x0_scale(self) -> Tensor:
        """Squared x0 error for a squared prediction error of one, at each timestep, [T] in float64."""
        if self.prediction_type == "epsilon":
            return 1 / self.snr
        if self.prediction_type == "v_prediction":
            return self.sigma.square()
        return torch.ones_like(self.sigma)

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the denoiser should say; v = alpha · noise − sigma · x0 (Salimans & Ho 2022, appendix D)."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "v_prediction":
            return alpha * noise - sigma * x0
        return x0

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Noised:
        def at_t(table: Tensor) -> Tensor:
            return table.to(x0.device)[t].to(x0.dtype)

        alpha, sigma = at_t(self.alpha)[:, None, None, None], at_t(self.sigma)[:, None, None, None]
        x = alpha * x0 + sigma * noise
        return Noised(x, t, self.target(x0, noise, alpha, sigma), at_t(self.snr), at_t(self.x0_scale))


def pretrained_scheduler(path: str, revision: str | None = None, **changes):
    """The scheduler saved in `scheduler/` of a pipeline, with what the config changes in it; values of None change nothing.

    Only its JSON file is read, so that a contradiction is found before any weights are loaded.
    """
    import diffusers

    from t2i.models import locate

    changes = {key: value for key, value in changes.items() if value is not None}
    config = diffusers.DDIMScheduler.load_config(locate(path), subfolder="scheduler", revision=revision)
    # Inference schedulers (PNDM, DDIM) keep the training schedule under the same keys: DDIM reads them all and samples too.
    return diffusers.DDIMScheduler.from_config({**config, **changes})
