import json
import math

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from hypothesis import given
from hypothesis import strategies as st

from t2i.config import ConfigError
from t2i.diffusion.process import PREDICTION_TYPES, Diffusion
from t2i.models.schedulers import WITH_BETAS, flow_matching, pretrained_scheduler

SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def process(prediction_type):
    """Stable Diffusion's process, or a rectified flow."""
    if prediction_type == "flow_prediction":
        return Diffusion.from_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), continuous_time=False)
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


# Flows


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flow_of_timesteps_has_the_tables_of_diffusers(shift):
    """The sigmas and times of Diffusers' flow scheduler, and of DPM-Solver with flow sigmas."""
    euler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    for scheduler in (euler, flow_matching(1000, shift)):
        flow = Diffusion.from_scheduler(scheduler, continuous_time=False)
        assert torch.allclose(flow.sigma, euler.sigmas.double().flip(0), atol=1e-6)
        assert torch.allclose(flow.time.double(), euler.timesteps.double().flip(0), atol=1e-3)
        x0, noise = latents()
        noised = flow.add_noise(x0, noise, torch.tensor([0, 300, 700, 999]))
        theirs = euler.scale_noise(x0, euler.timesteps.flip(0)[[0, 300, 700, 999]], noise)
        assert torch.allclose(noised.x, theirs, atol=1e-6)
        assert torch.equal(noised.target, noise - x0)


DYNAMIC = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.4, "max_shift": 1.3}
FLUX_1 = {**DYNAMIC, "base_shift": 0.5, "max_shift": 1.15}  # its file holds a shift of 3 that is ignored
QWEN_IMAGE = {**DYNAMIC, "max_shift": 0.9, "base_shift": 0.5, "max_image_seq_len": 8192, "shift_terminal": 0.02}


@pytest.mark.parametrize("size", [(16, 16), (128, 96)])
@pytest.mark.parametrize(
    "config",
    [
        {"shift": 3.0},
        {"shift": 6.0, "shift_terminal": 0.1},
        FLUX_1,
        QWEN_IMAGE,
        {**DYNAMIC, "time_shift_type": "linear"},
    ],
)
def test_the_times_of_a_flow_are_those_by_which_diffusers_samples(config, size):
    """With the shift of the image's own length; Diffusers ends at shift_terminal in the limit of many steps."""
    steps = 100_000
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    flow = Diffusion.from_scheduler(scheduler).for_model(patch_size=2)
    tokens, of_config = size[0] * size[1] // 4, scheduler.config
    mu = calculate_shift(
        tokens, of_config.base_image_seq_len, of_config.max_image_seq_len, of_config.base_shift, of_config.max_shift
    )
    u = np.linspace(1, 1 / steps, steps)
    scheduler.set_timesteps(sigmas=u.tolist(), mu=mu if of_config.use_dynamic_shifting else None)
    chosen = torch.tensor([20_000, 50_000, 99_000])
    x0, noise = torch.randn(2, 3, 4, *size, dtype=torch.float64)
    noised = flow.add_noise(x0, noise, torch.from_numpy(u)[chosen] * len(flow))
    sigma = scheduler.sigmas.double()[chosen][:, None, None, None]
    assert torch.allclose(noised.x, (1 - sigma) * x0 + sigma * noise, atol=1e-3)
    assert torch.allclose(noised.time, scheduler.timesteps[chosen], rtol=1e-3)
    assert torch.equal(noised.target, noise - x0)


def test_a_family_may_bring_its_own_rule_of_shift():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**FLUX_1)
    flow = Diffusion.from_scheduler(scheduler).for_model(patch_size=2, mu=lambda tokens: tokens / 100)
    x0 = torch.zeros(1, 4, 16, 8, dtype=torch.float64)  # 32 tokens
    sigma = flow.add_noise(x0, x0 + 1, torch.tensor([500.0])).x.mean()
    assert sigma.item() == pytest.approx(math.exp(0.32) / (math.exp(0.32) + 1))


@given(st.floats(0, 1000, width=32), st.floats(0.1, 10))
def test_a_flow_in_continuous_time_is_finite_everywhere(t, shift):
    flow = Diffusion.from_scheduler(flow_matching(1000, shift))
    x0, noise = torch.randn(2, 1, 4, 2, 2)
    noised = flow.add_noise(x0, noise, torch.tensor([t], dtype=torch.float32))
    assert 0 < noised.time.item() < 1000
    sigma = noised.time[:, None, None, None] / 1000
    assert torch.allclose(noised.x, (1 - sigma) * x0 + sigma * noise, atol=1e-5)
    assert all(value.isfinite().all() and (value > 0).all() for value in (noised.snr, noised.x0_scale))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"shift": 0.0}, "scheduler.shift=0.0 must be positive"),
        ({"shift": 1.0, "shift_terminal": 1.0}, "scheduler.shift_terminal=1.0 must be at least 0 and below 1"),
        ({"shift": 1.0, "invert_sigmas": True}, "invert_sigmas=true swaps image and noise"),
    ],
)
def test_flows_out_of_range(config, message):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    with pytest.raises(ConfigError, match=message):
        Diffusion.from_scheduler(scheduler)


def test_timesteps_and_a_shift_by_the_image_exclude_each_other():
    with pytest.raises(ConfigError, match=r"continuous_time=false has one table.*scheduler.shift=3"):
        Diffusion.from_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(**FLUX_1), continuous_time=False)


# Sampling

WHOLE = {**SD15, "clip_sample": False, "set_alpha_to_one": True}  # Stable Diffusion's own ends at its first timestep
SCHEDULERS = {
    "epsilon": diffusers.DDIMScheduler(prediction_type="epsilon", **WHOLE),
    "sample": diffusers.DDIMScheduler(prediction_type="sample", **WHOLE),
    "v_prediction": diffusers.DDIMScheduler(prediction_type="v_prediction", **WHOLE),
    "zero_terminal_snr": diffusers.DDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", **WHOLE
    ),
    "flow_matching": flow_matching(1000, 3.0),
    "flux": diffusers.FlowMatchEulerDiscreteScheduler(**FLUX_1),
    "qwen_image": diffusers.FlowMatchEulerDiscreteScheduler(**QWEN_IMAGE),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_a_denoiser_that_always_says_the_target_is_led_to_x0(scheduler):
    """It knows x0 and sees x and the time; the steps from noise are those of Diffusers."""
    diffusion, (x0, noise) = Diffusion.from_scheduler(scheduler), latents()
    scheduler.set_timesteps(20, **({"mu": 0.8} if scheduler.config.get("use_dynamic_shifting") else {}))
    x = noise
    for t in scheduler.timesteps:
        if diffusion.prediction_type == "flow_prediction":
            sigma = t.double() / 1000
            alpha = 1 - sigma
        else:
            alpha, sigma = diffusion.alpha[t], diffusion.sigma[t]
        target = diffusion.target(x0, (x - alpha * x0) / sigma, alpha, sigma)
        x = scheduler.step(target, t, x).prev_sample
    assert (x - x0).norm() < 1e-3 * x0.norm()


# Between the timesteps


def linear(t):
    """The log of alpha² of the schedule whose noise per time rises linearly, in the limit of many timesteps."""
    return -(1e-4 * t + (0.02 - 1e-4) * t.square() / 2000)


def cosine(t):
    """Of the cosine schedule of Nichol & Dhariwal 2021."""
    return 2 * torch.log(torch.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2))


@pytest.mark.parametrize("log_alpha_squared", [linear, cosine])
def test_real_times_are_those_of_the_schedule_in_closed_form(log_alpha_squared):
    """A table of the schedule at integers, met between them: the time in closed form to 0.01 from timestep 20 on."""
    steps = torch.arange(1, 1000).double()
    alpha_squared = log_alpha_squared(steps).exp()
    diffusion = Diffusion(alpha_squared.sqrt(), (1 - alpha_squared).sqrt(), steps.long(), "v_prediction")
    t = torch.tensor([20.3, 123.45, 500.5, 876.54, 950.5]).double()
    wanted = log_alpha_squared(t).exp()
    levels = diffusion.levels_at((wanted / (1 - wanted)).log())
    assert torch.allclose(levels.alpha.square(), wanted)
    assert torch.allclose(levels.sigma.square(), 1 - wanted)
    assert torch.allclose(levels.time.double() + 1, t, atol=0.01)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_at_the_log_snr_of_a_timestep_the_noise_is_that_of_the_timestep(prediction_type):
    diffusion = process(prediction_type)
    x0, noise = latents()
    t = torch.tensor([0, 10, 500, 998])
    expected, found = diffusion.add_noise(x0, noise, t), diffusion.add_noise_at(x0, noise, diffusion.snr[t].log())
    for name in ("x", "time", "target", "snr", "x0_scale"):
        assert torch.allclose(getattr(found, name).double(), getattr(expected, name).double(), rtol=1e-5), name


def test_the_log_snrs_that_a_process_has():
    low, high = process("epsilon").log_snr_range
    assert (round(low, 2), round(high, 2)) == (-5.36, 7.07)
    rescaled = Diffusion.from_scheduler(pretrained_scheduler("tiny", None, None, True, None))
    assert rescaled.log_snr_range[0] < -12
    assert rescaled.levels_at(torch.tensor([-12.0]).double()).alpha.item() == pytest.approx(math.exp(-6), rel=1e-4)
    assert process("flow_prediction").log_snr_range == (-math.inf, math.inf)
    ends = Diffusion.from_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(**QWEN_IMAGE)).log_snr_range
    assert ends == (-math.inf, pytest.approx(2 * math.log(0.98 / 0.02)))


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


@pytest.fixture
def saved_flow(tmp_path):
    """A pipeline's folder with the scheduler of a flow."""

    def save(scheduler):
        scheduler.save_pretrained(tmp_path / "scheduler")
        (tmp_path / "model_index.json").write_text("{}")
        return tmp_path

    return save


def test_the_shift_of_a_saved_flow_is_read_and_can_be_changed(saved_flow):
    path = saved_flow(diffusers.FlowMatchEulerDiscreteScheduler(**QWEN_IMAGE))
    saved = pretrained_scheduler(path, None, None, None, None)
    assert (saved.config.use_dynamic_shifting, saved.config.shift_terminal) == (True, 0.02)
    constant = pretrained_scheduler(path, None, None, None, None, shift=4.0, shift_terminal=0.0)
    assert torch.allclose(
        Diffusion.from_scheduler(constant).sigma, Diffusion.from_scheduler(flow_matching(1000, 4)).sigma
    )
    with pytest.raises(
        ConfigError, match=r"scheduler.prediction_type=epsilon has no effect, .* is a flow; scheduler=ddpm"
    ):
        pretrained_scheduler(path, None, "epsilon", None, None)


def test_the_shift_of_a_saved_solver_is_its_flow_shift(saved_flow):
    path = saved_flow(flow_matching(1000, 3.0))
    assert pretrained_scheduler(path, None, None, None, None, shift=5.0).config.flow_shift == 5.0


def test_the_shift_of_no_flow_is_refused():
    with pytest.raises(ConfigError, match=r"scheduler.use_dynamic_shifting=False, scheduler.shift=3.0 has no effect"):
        pretrained_scheduler("tiny", None, None, None, None, shift=3.0)


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        (diffusers.EDMDPMSolverMultistepScheduler(), "EDM's noise levels"),
        (diffusers.EDMEulerScheduler(), "EDM's noise levels"),
        (diffusers.EulerDiscreteScheduler(timestep_type="continuous", sigma_min=0.002), "EDM's noise levels"),
        (diffusers.LCMScheduler(**SD15), "distilled to a few steps"),
        (diffusers.TCDScheduler(**SD15), "distilled to a few steps"),
        (diffusers.FlowMatchLCMScheduler(), "distilled to a few steps"),
        (diffusers.CMStochasticIterativeScheduler(), "distilled to a few steps"),
        (diffusers.CogVideoXDDIMScheduler(), "not known to t2i"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_saved_scheduler_of_another_process_is_refused_by_name(saved_flow, scheduler, reason):
    """None of them is read as DDIM with betas that the model was not trained with."""
    name = type(scheduler).__name__
    with pytest.raises(ConfigError, match=rf"the {name} of model.path=.*{reason}.*Choose scheduler=ddim"):
        pretrained_scheduler(saved_flow(scheduler), None, None, None, None)


NEEDS_TORCHSDE = "DPMSolverSDEScheduler"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in WITH_BETAS if name != NEEDS_TORCHSDE])
@pytest.mark.parametrize("settings", [{**SD15, "prediction_type": "v_prediction"}, {}], ids=["full", "empty"])
def test_every_sampler_of_betas_is_read_with_its_own(saved_flow, name, settings):
    """A file that leaves them out means the defaults of its class."""
    expected = getattr(diffusers, name)(**settings)
    path = saved_flow(expected)
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": name, **settings}))
    read = pretrained_scheduler(path, None, None, None, None)
    assert torch.allclose(read.alphas_cumprod, expected.alphas_cumprod, rtol=1e-5)
    assert read.config.prediction_type == expected.config.prediction_type
