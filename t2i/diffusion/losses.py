"""Losses: an error times a weighting w(SNR), the weight of the squared x0 error.

    loss = w(SNR) · x0_scale · mean of m · error(prediction, target)

The error is (prediction − target)², or a robust form of it; m weighs its elements (a mask, an image's own weight), and
is one without such settings.

`x0_scale` turns the squared error of whatever is predicted (epsilon, v, x0) into that of x0, so one w means the same
with every prediction type. A new loss is one class here, one file in conf/loss/, and one test in
tests/diffusion/test_losses.py.
"""

import logging
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from t2i.config import ConfigError, check_positive
from t2i.diffusion.process import Diffusion, Noised
from t2i.diffusion.residuals import ErrorShape, mean_error

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Weighting:
    """A weighting of the squared x0 error by the signal-to-noise ratio.

    `normalize` divides by the mean weight of the prediction's error under the timestep distribution in use, so that
    changing the weighting does not also change the learning rate.
    """

    normalize: bool
    error: ErrorShape
    mean: float = field(default=1.0, init=False, repr=False)  # what `normalize` divides by, from `prepare`

    def weight(self, snr: Tensor) -> Tensor:
        """w(SNR), in the shape of `snr`."""
        raise NotImplementedError

    def scale(self, snr: Tensor, x0_scale: Tensor) -> Tensor:
        """Weight of the error of the prediction itself."""
        return self.weight(snr) * x0_scale / self.mean

    def __call__(self, prediction: Tensor, noised: Noised, weight: Tensor | None = None) -> Tensor:
        """Weighted loss of each example, [B]. weight: m, such as [B, 1, h, w]."""
        return self.scale(noised.snr, noised.x0_scale) * mean_error(self.error(prediction, noised), weight)

    def prepare(self, diffusion: Diffusion, probabilities: np.ndarray) -> None:
        """Compute what depends on the noise schedule and on the probability of each timestep, [T].

        ConfigError if the weight of a timestep is infinite or not a number.
        """
        self.error.prepare(diffusion)
        self.mean = 1.0
        name, snr = type(self).__name__, diffusion.snr
        scale = self.scale(snr.float(), diffusion.x0_scale.float()).double()  # in float32, as in training
        if (undefined := ~scale.isfinite()).any():
            raise ConfigError(
                f"loss: {name} has no finite weight at timestep {_span(undefined)} of this noise schedule, where the "
                f"signal-to-noise ratio is {snr[undefined].min():.3g}; use loss=mse, or loss=minsnr with "
                "scheduler.prediction_type=v_prediction"
            )
        if (zero := scale == 0).any():
            where = f"{zero.sum()} of {len(scale)} timesteps ({_span(zero)})"
            log.warning("loss: the weight of %s is exactly zero at %s, so nothing is learned there", name, where)
        mean = float((torch.as_tensor(probabilities) * scale).sum())
        if diffusion.prediction_type == "flow_prediction" and scale.min() != scale.max():
            log.info(
                "loss: on a flow, %s weighs the squared error of noise − x0 by w(SNR)·sigma²: %.3g to %.3g, %.3g on "
                "average (the plain error: loss=mse)",
                *(name, scale.min(), scale.max(), mean),
            )
        if self.normalize and mean == 0:
            raise ConfigError(
                f"loss.normalize=true divides by the mean weight, but {name} is zero at every timestep that is drawn; "
                "use another loss or other timesteps, or loss.normalize=false"
            )
        if self.normalize:
            self.mean = mean


class MSE(Weighting):
    """The plain error of whatever is predicted: w = 1 / x0_scale (Ho et al. 2020, equation 14)."""

    def scale(self, snr: Tensor, x0_scale: Tensor) -> Tensor:
        return torch.ones_like(x0_scale)


@dataclass(kw_only=True)
class MinSNR(Weighting):
    """Min-SNR-gamma: w = min(SNR, gamma) (Hang et al. 2023, arXiv 2303.09556, section 3.4)."""

    snr_gamma: float

    def __post_init__(self):
        check_positive("loss.snr_gamma", self.snr_gamma, "the paper uses 5 (for no weighting use loss=mse)")

    def weight(self, snr: Tensor) -> Tensor:
        return snr.clamp(max=self.snr_gamma)


class SoftMinSNR(MinSNR):
    """Min-SNR without the corner: w = 1 / (1/SNR + 1/gamma) (Crowson et al. 2024, arXiv 2401.11605)."""

    def weight(self, snr: Tensor) -> Tensor:
        return 1 / (1 / snr + 1 / self.snr_gamma)


class TruncatedSNR(Weighting):
    """w = max(SNR, 1), the larger of the x0 and the epsilon error (Salimans & Ho 2022, arXiv 2202.00512, section 4)."""

    def weight(self, snr: Tensor) -> Tensor:
        return snr.clamp(min=1)


class Debiased(Weighting):
    """w = √SNR, which is 1/√SNR on the epsilon error (Yu et al. 2023, arXiv 2310.08442)."""

    def weight(self, snr: Tensor) -> Tensor:
        return snr.sqrt()


@dataclass(kw_only=True)
class P2(Weighting):
    """w = SNR / (k + SNR)^p, which is 1 / (k + SNR)^p on the epsilon error (Choi et al. 2022, arXiv 2204.00227)."""

    k: float
    p: float

    def __post_init__(self):
        check_positive("loss.k", self.k, "the paper uses 1")
        if not self.p >= 0:
            raise ConfigError(f"loss.p={self.p} must be at least 0; the paper uses 0.5 and 1 (0: the epsilon error)")

    def weight(self, snr: Tensor) -> Tensor:
        return snr / (self.k + snr) ** self.p


@dataclass(kw_only=True)
class EDM(Weighting):
    """w = SNR + 1 / sigma_data² (Karras et al. 2022, arXiv 2206.00364, table 1, in its noise level 1/√SNR)."""

    sigma_data: float

    def __post_init__(self):
        check_positive("loss.sigma_data", self.sigma_data, "1 is about the standard deviation of the latents")

    def weight(self, snr: Tensor) -> Tensor:
        return snr + self.sigma_data**-2


@dataclass(kw_only=True)
class SigmaSqrt(Weighting):
    """w = (1 + √SNR)⁴, which is sigma⁻² on the error of a flow, whose sigma is 1 / (1 + √SNR).

    As `weighting_scheme=sigma_sqrt` of Diffusers' scripts for Stable Diffusion 3 (Esser et al. 2024). It grows without
    bound towards clean images, so a larger SNR than `max_snr` counts as that.
    """

    max_snr: float

    def __post_init__(self):
        check_positive("loss.max_snr", self.max_snr, "1e6 is the SNR of the cleanest of 1,000 timesteps of a flow")

    def weight(self, snr: Tensor) -> Tensor:
        return (1 + snr.clamp(max=self.max_snr).sqrt()) ** 4


class CosMap(Weighting):
    """w = 2 (1 + √SNR)⁴ / (π (1 + SNR)), which is 2 / (π (1 − 2 sigma + 2 sigma²)) on the error of a flow.

    As `weighting_scheme=cosmap` of the same scripts: the density with which the cosine schedule would draw sigma
    (Esser et al. 2024, arXiv 2403.03206, section 3.1), as a weight.
    """

    def weight(self, snr: Tensor) -> Tensor:
        return 2 / torch.pi * (1 + snr.sqrt()) ** 4 / (1 + snr)


def _span(mask: Tensor) -> str:
    """The first and the last index at which a mask is true."""
    first, last = mask.nonzero().flatten()[[0, -1]].tolist()
    return str(first) if first == last else f"{first}–{last}"
