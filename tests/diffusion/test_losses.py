import logging

import diffusers
import numpy as np
import pytest
import torch
from diffusers.training_utils import compute_loss_weighting_for_sd3
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from t2i.diffusion import losses
from t2i.diffusion.losses import EDM, MSE, P2, Debiased, MinSNR, TruncatedSNR
from t2i.diffusion.process import Diffusion, Noised
from t2i.diffusion.residuals import THRESHOLDS, Huber, SmoothL1, Squared, squared_error
from t2i.diffusion.timesteps import LogitNormal, Uniform

STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
RESCALED = {**STABLE, "rescale_betas_zero_snr": True}
PROCESSES = {  # Stable Diffusion 1.5 and 2.1, and 2.1 with zero terminal SNR
    "sd15": {"prediction_type": "epsilon", **STABLE},
    "sd21": {"prediction_type": "v_prediction", **STABLE},
    "sample": {"prediction_type": "sample", **STABLE},
    "rescaled": {"prediction_type": "v_prediction", **RESCALED},
    "rescaled_sample": {"prediction_type": "sample", **RESCALED},
}
SETTINGS = {
    "MSE": {},
    "MinSNR": {"snr_gamma": 5.0},
    "SoftMinSNR": {"snr_gamma": 5.0},
    "TruncatedSNR": {},
    "Debiased": {},
    "P2": {"k": 1.0, "p": 1.0},
    "EDM": {"sigma_data": 0.5},
    "SigmaSqrt": {"max_snr": 1e6},
    "CosMap": {},
}
SPACES = ("epsilon", "v_prediction", "sample")
gammas = st.floats(1e-3, 1e4)
timesteps = st.lists(st.integers(0, 999), min_size=1, max_size=8)


def make(weighting, *, normalize=False, error=None, **settings):
    """A weighting with all its settings, by class or by name."""
    kind = getattr(losses, weighting) if isinstance(weighting, str) else weighting
    return kind(normalize=normalize, error=error or Squared(), **{**SETTINGS.get(kind.__name__, {}), **settings})


def process(prediction_type="epsilon", **changes) -> Diffusion:
    settings = {"prediction_type": prediction_type, **STABLE, **changes}
    return Diffusion.from_scheduler(diffusers.DDPMScheduler(**settings))


def noised(prediction_type, t, seed=0):
    diffusion = process(prediction_type)
    x0, noise = torch.randn(2, len(t), 4, 8, 8, generator=torch.Generator().manual_seed(seed)).double()
    return diffusion, diffusion.add_noise(x0, noise, torch.tensor(t))


def scale(weighting, diffusion) -> Tensor:
    return weighting.scale(diffusion.snr, diffusion.x0_scale)


class PowerLaw(losses.Weighting):
    """w = SNR^power."""

    power = 1.0

    def weight(self, snr: Tensor) -> Tensor:
        return snr**self.power


# One algebra


@pytest.mark.parametrize("weighting", [PowerLaw, *(name for name in SETTINGS if name != "MSE")])
@given(st.lists(st.floats(0.02, 0.9998), min_size=1, max_size=6), st.floats(-2, 2))
def test_the_same_x0_error_costs_the_same_in_every_space(weighting, alphas, power):
    """A network that outputs x0, trained through its epsilon or v, gets the same gradient for any schedule and w."""
    alpha = torch.tensor(alphas).double()
    t, sigma = torch.arange(len(alphas)), (1 - alpha.square()).sqrt()
    x0, noise = torch.randn(2, len(alphas), 1, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    loss = make(weighting)
    loss.power = power
    gradients = []
    for prediction_type in SPACES:
        batch = Diffusion(alpha, sigma, t, prediction_type).add_noise(x0, noise, t)
        output = torch.zeros_like(x0, requires_grad=True)
        alpha_b, sigma_b = alpha[:, None, None, None], sigma[:, None, None, None]
        epsilon = (batch.x - alpha_b * output) / sigma_b
        prediction = {"epsilon": epsilon, "v_prediction": alpha_b * epsilon - sigma_b * output, "sample": output}
        gradients += torch.autograd.grad(loss(prediction[prediction_type], batch).sum(), output)
    relative = [(gradient / gradients[2] - 1).abs().max() for gradient in gradients]
    assert max(relative) < 1e-6


@pytest.mark.parametrize("weighting", SETTINGS)
@pytest.mark.parametrize("settings", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_weight_is_finite_and_zero_only_where_the_formula_is(weighting, settings, dtype):
    diffusion, loss = process(**settings), make(weighting)
    weights = loss.scale(diffusion.snr.to(dtype), diffusion.x0_scale.to(dtype))
    assert weights.isfinite().all()
    vanishes = weighting in ("MinSNR", "SoftMinSNR", "Debiased", "P2")  # w(0) = 0
    assert torch.equal(weights == 0, (diffusion.snr == 0) if vanishes else torch.zeros_like(weights, dtype=torch.bool))


# The formulas, as they were published


@given(gammas, timesteps)
def test_minsnr_is_the_published_formula(snr_gamma, t):
    """Hang et al. 2023: min(SNR, gamma) / SNR for epsilon; min(SNR, gamma) / (SNR + 1) for v."""
    for prediction_type, denominator in [("epsilon", lambda snr: snr), ("v_prediction", lambda snr: snr + 1)]:
        diffusion, batch = noised(prediction_type, t)
        prediction = torch.zeros_like(batch.target, requires_grad=True)
        loss = make(MinSNR, snr_gamma=snr_gamma)(prediction, batch).mean()
        snr = diffusion.snr[t]
        weight = torch.minimum(snr, torch.tensor(snr_gamma).double()) / denominator(snr)
        expected_gradient = 2 * weight[:, None, None, None] * (prediction - batch.target) / batch.target.numel()
        expected = (weight * (prediction - batch.target).square().mean(dim=(1, 2, 3))).mean()
        assert torch.allclose(loss.double(), expected, rtol=1e-6)
        (gradient,) = torch.autograd.grad(loss, prediction)
        assert torch.allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-9)


@given(timesteps)
@pytest.mark.parametrize("weighting", ["MinSNR", "SoftMinSNR"])
def test_with_large_gamma_it_is_the_plain_epsilon_error(weighting, t):
    _, batch = noised("epsilon", t)
    prediction = torch.zeros_like(batch.target)
    loss = make(weighting, snr_gamma=1e12)
    assert torch.allclose(loss(prediction, batch), make(MSE)(prediction, batch), rtol=1e-6)


@pytest.mark.parametrize("weighting", ["MinSNR", "SoftMinSNR"])
def test_with_small_gamma_it_is_proportional_to_the_plain_x0_error(weighting):
    assert torch.allclose(scale(make(weighting, snr_gamma=1e-9), process("sample")) / 1e-9, torch.tensor(1.0).double())


@given(gammas)
def test_soft_minsnr_stays_below_minsnr_and_is_half_of_it_at_gamma(snr_gamma):
    snr = torch.logspace(-4, 4, 50, dtype=torch.float64)
    soft, hard = (make(name, snr_gamma=snr_gamma) for name in ("SoftMinSNR", "MinSNR"))
    assert (soft.weight(snr) < hard.weight(snr)).all()
    at_gamma = torch.tensor(snr_gamma).double()
    assert torch.allclose(soft.weight(at_gamma), at_gamma / 2)


def test_truncated_snr_is_the_larger_of_the_x0_and_the_epsilon_error():
    for prediction_type in SPACES:
        diffusion = process(prediction_type)
        x0_error = diffusion.x0_scale
        assert torch.allclose(scale(make(TruncatedSNR), diffusion), torch.maximum(x0_error, x0_error * diffusion.snr))


def test_debiased_on_the_epsilon_error_is_one_over_the_root_of_the_snr():
    diffusion = process("epsilon")
    assert torch.allclose(scale(make(Debiased), diffusion), diffusion.snr.rsqrt())


@given(st.floats(0.01, 10), st.floats(0, 3))
def test_p2_on_the_epsilon_error_is_the_published_formula(k, p):
    diffusion = process("epsilon")
    assert torch.allclose(scale(make(P2, k=k, p=p), diffusion), 1 / (k + diffusion.snr) ** p)


@given(st.floats(0.05, 5))
def test_edm_is_the_published_formula(sigma_data):
    """Karras et al. 2022, table 1: (sigma² + sigma_data²) / (sigma · sigma_data)² on the x0 error, SNR = 1 / sigma²."""
    diffusion = process("sample")
    sigma = diffusion.snr.rsqrt()
    expected = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    assert torch.allclose(scale(make(EDM, sigma_data=sigma_data), diffusion), expected)


def test_edm_of_unit_variance_is_the_plain_v_error():
    diffusion = process("v_prediction")
    assert torch.allclose(scale(make(EDM, sigma_data=1.0), diffusion), torch.tensor(1.0).double())


@pytest.mark.parametrize("prediction_type", SPACES)
def test_mse_is_the_mean_squared_error(prediction_type):
    _, batch = noised(prediction_type, [0, 500, 999])
    prediction = torch.randn(3, 4, 8, 8).double()
    expected = torch.nn.functional.mse_loss(prediction, batch.target)
    assert torch.allclose(make(MSE)(prediction, batch).mean().double(), expected)
    assert torch.equal(make(MSE)(prediction, batch), squared_error(prediction, batch))


@pytest.mark.parametrize(("name", "weighting"), [("sigma_sqrt", "SigmaSqrt"), ("cosmap", "CosMap")])
def test_the_weights_of_sd3_are_those_of_diffusers(name, weighting):
    """On the error of a flow, at each of its noise levels but pure noise's."""
    flow = Diffusion.from_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0), continuous_time=False)
    theirs = compute_loss_weighting_for_sd3(name, flow.sigma)
    assert torch.allclose(scale(make(weighting), flow), theirs.double(), rtol=1e-5)


# What depends on the process


@pytest.mark.parametrize("weighting", SETTINGS)
@pytest.mark.parametrize("distribution", [Uniform(), LogitNormal(mean=0.5, std=0.7)], ids=["uniform", "logit_normal"])
@pytest.mark.parametrize("settings", PROCESSES.values(), ids=PROCESSES)
def test_normalized_weights_have_a_mean_of_one(weighting, distribution, settings):
    diffusion, loss = process(**settings), make(weighting, normalize=True)
    probabilities = distribution.probabilities(len(diffusion))
    loss.prepare(diffusion, probabilities)
    assert np.average(scale(loss, diffusion), weights=probabilities) == pytest.approx(1, rel=1e-5)
    plain = make(weighting)
    plain.prepare(diffusion, probabilities)
    relative = scale(plain, diffusion) / scale(plain, diffusion).sum()
    assert torch.allclose(scale(loss, diffusion) / scale(loss, diffusion).sum(), relative)
    loss.prepare(diffusion, probabilities)
    assert np.average(scale(loss, diffusion), weights=probabilities) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(("settings", "warnings"), [(PROCESSES["sd21"], 0), (PROCESSES["rescaled"], 1)])
def test_timesteps_without_any_weight_are_reported_once(settings, warnings, caplog):
    diffusion = process(**settings)
    with caplog.at_level(logging.WARNING):
        make(MinSNR).prepare(diffusion, Uniform().probabilities(1000))
        make(MSE).prepare(diffusion, Uniform().probabilities(1000))
    assert len(caplog.messages) == warnings
    for message in caplog.messages:
        assert "the weight of MinSNR is exactly zero at 1 of 1000 timesteps (999)" in message


def test_what_a_weighting_amounts_to_on_a_flow_is_said_once(caplog):
    flow = Diffusion.from_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0))
    with caplog.at_level(logging.INFO):
        make(MinSNR).prepare(flow, Uniform().probabilities(1000))
        make(MSE).prepare(flow, Uniform().probabilities(1000))
    (message,) = caplog.messages
    assert message.startswith("loss: on a flow, MinSNR weighs the squared error of noise − x0 by w(SNR)·sigma²: ")
    largest = 5 / (1 + 5**0.5) ** 2  # at SNR = 5
    assert f" to {largest:.3g}, " in message


@pytest.mark.parametrize("weighting", ["Debiased", "EDM", "TruncatedSNR", "P2"])
def test_an_undefined_weight_is_refused(weighting):
    alpha = torch.tensor([1.0, 1.0, 0.5]).double()
    diffusion = Diffusion(alpha, (1 - alpha.square()).sqrt(), torch.arange(3), "v_prediction")
    with pytest.raises(ValueError, match=f"loss: {weighting} has no finite weight at timestep 0–1 .* ratio is inf"):
        make(weighting).prepare(diffusion, Uniform().probabilities(3))
    for name in ("MSE", "MinSNR", "SoftMinSNR"):
        make(name).prepare(diffusion, Uniform().probabilities(3))


def test_nothing_but_zero_weights_cannot_be_normalized():
    with pytest.raises(ValueError, match=r"loss.normalize=true divides by the mean weight, but MinSNR is zero"):
        make(MinSNR, normalize=True).prepare(process(**PROCESSES["rescaled"]), np.eye(1000)[999])


# Error shapes


def prepared(kind, diffusion, c, schedule="constant"):
    error = kind(c=c, schedule=schedule)
    error.prepare(diffusion)
    return error


@given(st.floats(1e-3, 10), st.sampled_from(list(THRESHOLDS)), st.integers(0, 999), st.floats(-50, 50))
def test_the_pseudo_huber_formulas(c, schedule, t, residual):
    """kohya-ss/sd-scripts: 2c (√(r² + c²) − c) for huber, 2 (√(r² + c²) − c) for smooth_l1, c scheduled over t."""
    diffusion = process()
    alpha_squared = diffusion.alpha[t] ** 2
    noise_level = ((1 - alpha_squared) / alpha_squared) ** 0.5
    at_t = {"constant": c, "exponential": c ** (t / 1000), "snr": (1 - c) / (1 + noise_level) ** 2 + c}[schedule]
    expected = 2 * ((residual**2 + at_t**2) ** 0.5 - at_t)
    ones = torch.ones(1, 1, 2, 2)
    batch = Noised(ones, torch.tensor([t]), torch.tensor([t]), ones, torch.ones(1), torch.ones(1))
    for kind, factor in [(SmoothL1, 1), (Huber, at_t)]:
        error = prepared(kind, diffusion, c, schedule)(ones + residual, batch)
        assert error.flatten().tolist() == pytest.approx([float(factor * expected)] * 4, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(("kind", "factor"), [(Huber, lambda c: 1), (SmoothL1, lambda c: 1 / c)])
def test_with_large_c_it_is_proportional_to_the_squared_error(kind, factor):
    diffusion, batch = noised("epsilon", [1, 300, 999])
    prediction = torch.zeros_like(batch.target, requires_grad=True)
    squared, error = (shape(prediction, batch) for shape in (Squared(), prepared(kind, diffusion, 1e6)))
    assert torch.allclose(error, squared * factor(1e6), rtol=1e-6)
    gradients = [torch.autograd.grad(value.sum(), prediction)[0] for value in (squared, error)]
    assert torch.allclose(gradients[1], gradients[0] * factor(1e6), rtol=1e-5)


@pytest.mark.parametrize(("kind", "factor"), [(Huber, lambda c: 2 * c), (SmoothL1, lambda c: 2)])
def test_with_small_c_it_is_proportional_to_the_absolute_error(kind, factor):
    diffusion, batch = noised("epsilon", [1, 300, 999])
    prediction = torch.zeros_like(batch.target)
    absolute = (prediction - batch.target).abs()
    error = prepared(kind, diffusion, 1e-6)(prediction, batch)
    assert torch.allclose(error, absolute * factor(1e-6), rtol=1e-4, atol=1e-6 * factor(1e-6))


@pytest.mark.parametrize("schedule", THRESHOLDS)
@pytest.mark.parametrize("settings", PROCESSES.values(), ids=PROCESSES)
def test_thresholds_go_from_one_to_c(schedule, settings):
    thresholds = prepared(Huber, process(**settings), 0.1, schedule).thresholds.tensor
    assert thresholds.isfinite().all()
    assert thresholds[0].item() == pytest.approx(0.1 if schedule == "constant" else 1, abs=0.06)
    assert thresholds[-1].item() == pytest.approx(0.1, abs=0.005)
    assert (thresholds.diff() <= 0).all()


def test_a_perfect_prediction_has_no_error_and_no_gradient():
    diffusion, batch = noised("epsilon", [0, 999])
    for error in (Squared(), prepared(Huber, diffusion, 0.1, "snr"), prepared(SmoothL1, diffusion, 0.1, "snr")):
        prediction = batch.target.clone().requires_grad_()
        value = error(prediction, batch)
        assert torch.equal(value, torch.zeros_like(prediction))
        assert torch.equal(torch.autograd.grad(value.sum(), prediction)[0], torch.zeros_like(prediction))


@pytest.mark.parametrize("schedule", THRESHOLDS)
def test_between_timesteps_the_threshold_is_that_of_the_noise_level(schedule):
    flow = Diffusion.from_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    huber, x0 = prepared(Huber, flow, 0.1, schedule), torch.zeros(2, 1, 2, 2)
    found = huber.threshold(flow.add_noise(x0, x0, torch.tensor([300.5, 700.25])))
    table = huber.thresholds.tensor  # at the middles of the timesteps
    assert torch.allclose(found.flatten(), table[[300, 700]], atol=1e-3)


def test_a_weighting_weighs_the_error_that_it_is_given():
    diffusion, batch = noised("v_prediction", [10, 990])
    prediction = torch.zeros_like(batch.target)
    loss = make(MinSNR, error=Huber(c=0.2, schedule="exponential"), normalize=True)
    loss.prepare(diffusion, Uniform().probabilities(1000))
    errors = prepared(Huber, diffusion, 0.2, "exponential")(prediction, batch)
    scale = loss.scale(batch.snr, batch.x0_scale)
    assert torch.equal(loss(prediction, batch), scale * errors.flatten(1).mean(1))
    half = torch.full((2, 1, 1, 1), 0.5)
    assert torch.equal(loss(prediction, batch, half), loss(prediction, batch) / 2)


# Settings out of range


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: make(MinSNR, snr_gamma=0), "loss.snr_gamma=0 must be positive; the paper uses 5"),
        (lambda: make("SoftMinSNR", snr_gamma=-1.0), "loss.snr_gamma=-1.0 must be positive"),
        (lambda: make(P2, k=0.0), "loss.k=0.0 must be positive; the paper uses 1"),
        (lambda: make(P2, p=-1.0), "loss.p=-1.0 must be at least 0"),
        (lambda: make(EDM, sigma_data=float("nan")), "loss.sigma_data=nan must be positive"),
        (lambda: Huber(c=0.0, schedule="snr"), "error.c=0.0 must be positive"),
        (lambda: SmoothL1(c=0.1, schedule="cosine"), "error.schedule=cosine is not known; choose from constant, exp"),
    ],
)
def test_values_out_of_range(mistake, message):
    with pytest.raises(ValueError, match=message):
        mistake()
