"""The error of each element of a prediction, from its residual: squared, or less sensitive to outliers."""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from t2i.config import ConfigError, check_positive
from t2i.diffusion.process import Diffusion, Noised
from t2i.hardware.uploads import Uploaded


def residual(prediction: Tensor, noised: Noised) -> Tensor:
    """Prediction − target, [B, C, h, w], in the type of the latents rather than of autocast."""
    return prediction.to(noised.target.dtype) - noised.target


def mean_error(errors: Tensor, weight: Tensor | None = None) -> Tensor:
    """The mean over each example's elements, [B] of [B, C, h, w]. weight: of the elements, such as [B, 1, h, w]."""
    return (errors if weight is None else errors * weight).flatten(1).mean(1)


def squared_error(prediction: Tensor, noised: Noised) -> Tensor:
    """Mean squared error of each prediction, [B]."""
    return mean_error(residual(prediction, noised).square())


class ErrorShape(Protocol):
    """An error that a weighting weighs."""

    def prepare(self, diffusion: Diffusion) -> None:
        """Compute what depends on the noise schedule."""
        ...

    def __call__(self, prediction: Tensor, noised: Noised) -> Tensor:
        """Error of each element of the prediction, [B, C, h, w]."""
        ...


class Squared(ErrorShape):
    """r², of residuals r."""

    def prepare(self, diffusion: Diffusion) -> None:
        pass

    def __call__(self, prediction: Tensor, noised: Noised) -> Tensor:
        return residual(prediction, noised).square()


# schedule -> c at signal-to-noise ratios and at their timesteps' fractions of T, as in kohya-ss/sd-scripts
# (get_huber_threshold_if_needed, huber_scale=1).
THRESHOLDS = {
    "constant": lambda c, snr, fraction: torch.full_like(snr, c),
    # c^(t/T): from 1 at the clean end to c at the noisy end
    "exponential": lambda c, snr, fraction: c**fraction,
    # c + (1 − c) / (1 + 1/√SNR)²: the same ends, following the noise instead of the timestep's number
    "snr": lambda c, snr, fraction: c + (1 - c) / (1 + snr.rsqrt()).square(),
}


@dataclass(kw_only=True)
class Huber(ErrorShape):
    """Pseudo-Huber: 2c (√(r² + c²) − c), which is r² for |r| ≪ c and 2c|r| for |r| ≫ c (Charbonnier et al. 1997).

    As `loss_type=huber` of kohya-ss/sd-scripts, with c from a schedule over the timesteps.
    """

    c: float
    schedule: str
    thresholds: Uploaded | None = field(default=None, init=False, repr=False)  # [T], from `prepare`

    def __post_init__(self):
        check_positive("error.c", self.c, "sd-scripts uses 0.1 (for the squared error use error=squared)")
        if self.schedule not in THRESHOLDS:
            raise ConfigError(f"error.schedule={self.schedule} is not known; choose from {', '.join(THRESHOLDS)}")

    def prepare(self, diffusion: Diffusion) -> None:
        fraction = torch.arange(len(diffusion)).double() / len(diffusion)
        self.thresholds = Uploaded(THRESHOLDS[self.schedule](self.c, diffusion.snr, fraction).float())

    def threshold(self, noised: Noised) -> Tensor:
        """c of each example, [B, 1, 1, 1]."""
        assert self.thresholds is not None, "prepare() first"
        if noised.t.is_floating_point():  # between the timesteps
            c = THRESHOLDS[self.schedule](self.c, noised.snr, noised.t / len(self.thresholds.tensor))
        else:
            c = self.thresholds.to(noised.t.device)[noised.t]
        return c[:, None, None, None]

    def __call__(self, prediction: Tensor, noised: Noised) -> Tensor:
        r = residual(prediction, noised)
        root = (1 + (r / self.threshold(noised)).square()).sqrt()
        return 2 * r.square() / (1 + root)  # the same formula, without subtracting nearly equal numbers


class SmoothL1(Huber):
    """2 (√(r² + c²) − c): Huber / c, which is r²/c for |r| ≪ c, and 2|r| for |r| ≫ c whatever c is.

    As `loss_type=smooth_l1` of kohya-ss/sd-scripts. Where c varies with the timestep, 1/c weighs the timesteps as well.
    """

    def __call__(self, prediction: Tensor, noised: Noised) -> Tensor:
        return super().__call__(prediction, noised) / self.threshold(noised)
