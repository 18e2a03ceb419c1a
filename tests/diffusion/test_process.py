import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from t2i.diffusion.process import PREDICTION_TYPES, Diffusion
from t2i.models.schedulers import pretrained_scheduler

SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def process(prediction_type):
    """Stable Diffusion's process, or a rectified flow."""
    if prediction_type == "flow_prediction":
        return Diffusion.from_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    return Diffusion.from_scheduler(diffusers.DDPMScheduler(prediction_type=prediction_type, **SD15))


def latents(seed=0, batch=4):
    return torch.randn(2, batch, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "schedule", [SD15, {}, {"beta_schedule": "squaredcos_cap_v2"}, {**SD15, "rescale_betas_zero_snr": True}]
)
def test_equal_to_diffusers(schedule):
    scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction", **schedule)
    diffusion = Diffusion.from_scheduler(scheduler)
    x0, noise = latents()
    t = torch.tensor([0, 1, 500, 999])
    noised = diffusion.add_noise(x0, noise, t)
    assert torch.allclose(noised.x, scheduler.add_noise(x0, noise, t), atol=1e-6)
    assert torch.allclose(noised.target, scheduler.get_velocity(x0, noise, t), atol=1e-6)
    assert torch.allclose(diffusion.alpha.square(), scheduler.alphas_cumprod.double(), rtol=0, atol=1e-6)
    assert torch.allclose(diffusion.alpha.square() + diffusion.sigma.square(), torch.ones(1000, dtype=torch.float64))


@given(st.sampled_from(PREDICTION_TYPES), st.lists(st.integers(0, 999), min_size=4, max_size=4), st.integers(0, 2**31))
def test_x0_scale_turns_prediction_error_into_x0_error(prediction_type, t, seed):
    """The squared error of the x0 that a wrong prediction implies is x0_scale times that of the prediction."""
    diffusion = process(prediction_type)
    x0, noise = latents(seed)
    t = torch.tensor(t)
    noised = diffusion.add_noise(x0, noise, t)
    error = torch.randn(x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    alpha, sigma = (table[t][:, None, None, None] for table in (diffusion.alpha, diffusion.sigma))
    implied = {
        "epsilon": lambda p: (noised.x - sigma * p) / alpha,
        "v_prediction": lambda p: alpha * noised.x - sigma * p,
        "sample": lambda p: p,
        "flow_prediction": lambda p: noised.x - sigma * p,
    }[prediction_type]
    assert torch.allclose(implied(noised.target), x0, atol=1e-8)
    x0_error = (implied(noised.target + error) - x0).square().flatten(1).mean(1)
    assert torch.allclose(x0_error, noised.x0_scale * error.square().flatten(1).mean(1), rtol=1e-6)


def test_epsilon_with_zero_terminal_snr_is_refused():
    scheduler = diffusers.DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="epsilon", **SD15)
    with pytest.raises(ValueError, match=r"zero terminal SNR.*scheduler\.prediction_type=v_prediction"):
        Diffusion.from_scheduler(scheduler)


def test_unknown_prediction_type_is_refused():
    with pytest.raises(ValueError, match=r"scheduler.prediction_type=velocity is not known; choose from epsilon"):
        Diffusion(torch.ones(2), torch.ones(2), torch.arange(2), "velocity")


def test_pretrained_scheduler_is_the_saved_one_with_the_changes():
    saved = pretrained_scheduler("tiny", None, None, None, None)
    assert saved.config.prediction_type == "v_prediction"
    changed = pretrained_scheduler("tiny", None, "epsilon", None, "trailing")
    assert (changed.config.prediction_type, changed.config.timestep_spacing) == ("epsilon", "trailing")
    assert torch.equal(changed.alphas_cumprod, saved.alphas_cumprod)
    rescaled = pretrained_scheduler("tiny", None, None, True, None)
    assert Diffusion.from_scheduler(rescaled).snr[-1] < 1e-12


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_equals_diffusers(shift):
    """The sigmas and times of Diffusers' flow scheduler, and of DPM-Solver with flow sigmas."""
    euler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    solver = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    for flow in map(Diffusion.from_scheduler, (euler, solver)):
        assert torch.allclose(flow.sigma, euler.sigmas.double().flip(0), atol=1e-6)
        assert torch.allclose(flow.time.double(), euler.timesteps.double().flip(0), atol=1e-3)
        x0, noise = latents()
        noised = flow.add_noise(x0, noise, torch.tensor([0, 300, 700, 999]))
        theirs = euler.scale_noise(x0, euler.timesteps.flip(0)[[0, 300, 700, 999]], noise)
        assert torch.allclose(noised.x, theirs, atol=1e-6)
        assert torch.equal(noised.target, noise - x0)


def test_input_noise_is_in_the_input_only():
    x0, noise = latents()
    t = torch.tensor([0, 10, 500, 999])
    plain = process("v_prediction").add_noise(x0, noise, t)
    perturbed = process("v_prediction").add_noise(x0, noise, t, input_noise=noise + 1)
    assert torch.equal(plain.target, perturbed.target)
    assert not torch.equal(plain.x, perturbed.x)


def test_a_scheduler_without_a_noise_schedule_is_refused():
    with pytest.raises(ValueError, match=r"EDMEulerScheduler has no noise schedule to train with; use scheduler=ddpm"):
        Diffusion.from_scheduler(diffusers.EDMEulerScheduler())


@pytest.mark.parametrize(("name", "predicts"), [("sd15", "epsilon"), ("sd21", "v_prediction"), ("sdxl", "epsilon")])
def test_the_scheduler_of_a_family_is_read(layout, name, predicts):
    """PNDM, DDIM and Euler keep their betas and prediction type, and do not clip latents while sampling."""
    scheduler = pretrained_scheduler(layout(name), None, None, None, None)
    assert (scheduler.config.prediction_type, scheduler.config.clip_sample) == (predicts, False)
    stable_diffusion = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float32).square()
    assert torch.allclose(scheduler.betas, stable_diffusion)
