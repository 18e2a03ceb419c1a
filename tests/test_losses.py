import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from t2i.diffusion import PREDICTION_TYPES, Diffusion, Noised
from t2i.losses import MSE, MinSNR, squared_error

SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
WEIGHTINGS = [MinSNR(1.0), MinSNR(5.0), MinSNR(20.0)]
gammas = st.floats(1e-3, 1e4)


def noised(prediction_type, t, seed=0):
    diffusion = Diffusion.from_scheduler(diffusers.DDPMScheduler(prediction_type=prediction_type, **SD15))
    x0, noise = torch.randn(2, len(t), 4, 8, 8, generator=torch.Generator().manual_seed(seed)).double()
    return diffusion, diffusion.add_noise(x0, noise, torch.tensor(t))


@given(gammas, st.lists(st.integers(0, 999), min_size=1, max_size=8))
def test_minsnr_is_the_published_formula(snr_gamma, t):
    """Hang et al. 2023: min(SNR, gamma) / SNR for epsilon; min(SNR, gamma) / (SNR + 1) for v."""
    for prediction_type, denominator in [("epsilon", lambda snr: snr), ("v_prediction", lambda snr: snr + 1)]:
        diffusion, batch = noised(prediction_type, t)
        prediction = torch.zeros_like(batch.target, requires_grad=True)
        loss = MinSNR(snr_gamma)(prediction, batch).mean()
        snr = diffusion.snr[t]
        weight = torch.minimum(snr, torch.tensor(snr_gamma).double()) / denominator(snr)
        expected_gradient = 2 * weight[:, None, None, None] * (prediction - batch.target) / batch.target.numel()
        expected = (weight * (prediction - batch.target).square().mean(dim=(1, 2, 3))).mean()
        assert torch.allclose(loss.double(), expected, rtol=1e-6)
        (gradient,) = torch.autograd.grad(loss, prediction)
        assert torch.allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-9)


@given(st.lists(st.integers(0, 999), min_size=1, max_size=8))
def test_minsnr_with_large_gamma_is_the_plain_epsilon_error(t):
    _, batch = noised("epsilon", t)
    prediction = torch.zeros_like(batch.target)
    assert torch.allclose(MinSNR(1e9)(prediction, batch), MSE()(prediction, batch), rtol=1e-6)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("t", [1, 300, 700, 999])
def test_the_same_x0_error_costs_the_same_in_every_space(weighting, t):
    """A network that outputs x0, trained through its epsilon or v, gets the same gradient at its x0 output."""
    gradients = []
    for prediction_type in PREDICTION_TYPES:
        diffusion, batch = noised(prediction_type, [t, t])
        alpha, sigma = diffusion.alpha[t], diffusion.sigma[t]
        x0 = torch.zeros_like(batch.x, requires_grad=True)
        epsilon = (batch.x - alpha * x0) / sigma
        prediction = {"epsilon": epsilon, "v_prediction": alpha * epsilon - sigma * x0, "sample": x0}[prediction_type]
        gradients += torch.autograd.grad(weighting(prediction, batch).mean(), x0)
    assert torch.allclose(gradients[0], gradients[2], rtol=1e-4, atol=1e-7)
    assert torch.allclose(gradients[1], gradients[2], rtol=1e-4, atol=1e-7)


def test_mse_is_the_mean_squared_error():
    batch = Noised(*[torch.randn(3, 4, 8, 8)] * 2, torch.randn(3, 4, 8, 8), torch.ones(3), torch.ones(3))
    prediction = torch.randn(3, 4, 8, 8)
    assert torch.allclose(MSE()(prediction, batch).mean(), torch.nn.functional.mse_loss(prediction, batch.target))
    assert torch.equal(MSE()(prediction, batch), squared_error(prediction, batch))


@pytest.mark.parametrize("snr_gamma", [0, -1.0])
def test_snr_gamma_must_be_positive(snr_gamma):
    with pytest.raises(ValueError, match=r"loss.snr_gamma=.* must be positive"):
        MinSNR(snr_gamma)
