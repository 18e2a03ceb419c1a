"""Loss weightings, each written once as w(SNR), the weight of the squared x0 error.

    loss = w(SNR) · x0_scale · ‖prediction − target‖²

`x0_scale` turns the error of whatever is predicted (epsilon, v, x0) into the x0 error, so the same w trains the same thing
with every prediction type. A new loss is one class here, one file in conf/loss/, and one truth in tests/test_losses.py.
"""

import torch
from torch import Tensor

from t2i.diffusion import Noised


def squared_error(prediction: Tensor, noised: Noised) -> Tensor:
    """Mean squared error of each example in the space that is predicted, [B], in float32."""
    return (prediction.float() - noised.target.float()).square().flatten(1).mean(1)


class Weighting:
    """A weighting of the squared x0 error by the signal-to-noise ratio."""

    def weight(self, snr: Tensor) -> Tensor:
        """w(SNR), same shape as `snr`."""
        raise NotImplementedError

    def scale(self, snr: Tensor, x0_scale: Tensor) -> Tensor:
        """Weight of the squared error of the prediction itself."""
        return self.weight(snr) * x0_scale

    def __call__(self, prediction: Tensor, noised: Noised) -> Tensor:
        """Weighted loss of each example, [B]."""
        return self.scale(noised.snr, noised.x0_scale) * squared_error(prediction, noised)


class MSE(Weighting):
    """The plain error of whatever is predicted (Ho et al. 2020, equation 14)."""

    def scale(self, snr: Tensor, x0_scale: Tensor) -> Tensor:
        return torch.ones_like(x0_scale)


class MinSNR(Weighting):
    """Min-SNR-gamma: w = min(SNR, gamma) (Hang et al. 2023, arXiv 2303.09556, section 3.4)."""

    def __init__(self, snr_gamma: float):
        if snr_gamma <= 0:
            raise ValueError(
                f"loss.snr_gamma={snr_gamma} must be positive; the paper uses 5 (for no weighting: loss=mse)"
            )
        self.snr_gamma = snr_gamma

    def weight(self, snr: Tensor) -> Tensor:
        return snr.clamp(max=self.snr_gamma)
