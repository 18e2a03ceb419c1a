from contextlib import nullcontext
from types import SimpleNamespace

import diffusers
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator

from t2i.config import ConfigError
from t2i.data.latent_cache import encode
from t2i.data.openmoji import openmoji
from t2i.diffusion.process import Diffusion
from t2i.evaluation.battery import evaluate, make_battery, summary
from t2i.evaluation.noise_levels import LogSNRs, Origin, Timesteps, choose_levels
from t2i.models.schedulers import flow_matching
from t2i.models.stable_diffusion import load
from t2i.runs.errors_file import read_errors, write_errors

SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


SPACES = ("epsilon", "v_prediction", "sample", "flow_prediction")
SAME = {"images": "these", "autoencoder": "this"}


def diffusion(prediction_type="v_prediction", **schedule):
    if prediction_type == "flow_prediction":
        return Diffusion.from_scheduler(flow_matching(1000, 3.0))
    return Diffusion.from_scheduler(diffusers.DDPMScheduler(prediction_type=prediction_type, **(schedule or SD15)))


@pytest.fixture(scope="module")
def encoded(small_pipeline, tmp_path_factory):
    return encode(openmoji(64, {"food": 1.0}).validation, load(str(small_pipeline)), tmp_path_factory.mktemp("cache"))


def battery(encoded, process=None, seed=0, items=3, timesteps=16, log_snr=(-5, 5), **identity):
    process = process or diffusion()
    levels = choose_levels(process, timesteps, log_snr)
    return make_battery(encoded, np.ones(len(encoded)), process, levels, seed, items, SAME | identity)


class Oracle:
    """Knows x0 and says it with a fixed relative error, in the space of its prediction type."""

    def __init__(self, battery, diffusion, error):
        self.battery, self.diffusion, self.error = battery, diffusion, error

    def denoise(self, x, t, text):
        if self.diffusion.prediction_type == "flow_prediction":
            sigma = t.double() / 1000
            alpha = 1 - sigma
        else:  # the closed form between timesteps, from the log-SNR
            table = self.diffusion.snr.log().numpy()
            log_snr = torch.from_numpy(np.interp(t.double().numpy(), np.arange(len(table)), table))
            alpha, sigma = log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()
        alpha, sigma = alpha[:, None, None, None], sigma[:, None, None, None]
        cells = text["encoder_hidden_states"][:, 0, 0].long()
        x0 = torch.stack([self.battery.x0[cell] for cell in cells]).double() * (1 + self.error)
        epsilon = (x.double() - alpha * x0) / sigma
        v, flow = alpha * epsilon - sigma * x0, epsilon - x0
        return {"epsilon": epsilon, "v_prediction": v, "sample": x0, "flow_prediction": flow}[
            self.diffusion.prediction_type
        ]


def number_the_items(battery):
    """Let the oracle recognise the image by its embedding."""
    text = battery.text["encoder_hidden_states"].clone()
    text[:, 0, 0] = torch.arange(len(text))
    object.__setattr__(battery, "text", {"encoder_hidden_states": text})
    return battery


def test_the_battery_is_fixed_by_its_settings_the_images_and_the_autoencoder(encoded):
    changes = [{"seed": 1}, {"items": 2}, {"timesteps": 8}, {"log_snr": (-4, 5)}, {"images": "x"}, {"autoencoder": "x"}]
    others = [battery(encoded, **change) for change in changes]
    assert len({battery(encoded).hash, *(other.hash for other in others)}) == len(changes) + 1
    cells = np.arange(8)
    assert torch.equal(battery(encoded).noise(cells), battery(encoded, items=2).noise(cells))
    assert not torch.equal(battery(encoded).noise(cells), battery(encoded, seed=1).noise(cells))


def test_every_process_has_the_same_battery(encoded):
    """Stable Diffusion's schedule, the first paper's, zero terminal SNR, cosine, and a shifted flow."""
    schedules = [{**SD15}, {"beta_end": 0.02}, {**SD15, "rescale_betas_zero_snr": True}]
    schedules += [{"beta_schedule": "squaredcos_cap_v2"}]
    processes = [diffusion("v_prediction", **schedule) for schedule in schedules]
    processes += [diffusion("epsilon"), diffusion("flow_prediction")]
    batteries = [battery(encoded, process) for process in processes]
    assert len({fixed.hash for fixed in batteries}) == 1
    x0, noise = torch.stack(batteries[0].x0), torch.randn(3, 4, 16, 16)
    for process in processes:
        noised = batteries[0].levels.add_noise(process, x0, noise, np.array([0, 7, 15]))
        assert torch.allclose(noised.snr.log(), torch.tensor(batteries[0].levels.values[[0, 7, 15]]).float(), atol=1e-5)


def test_levels_are_the_middles_of_equal_parts_the_cleanest_first():
    assert LogSNRs.spread(-4, 4, 4).values.tolist() == [3, 1, -1, -3]
    assert LogSNRs.spread(-5, 5, 1).values.tolist() == [0]


def test_a_level_that_the_schedule_lacks_is_refused_by_name():
    message = r"log-SNRs from -5.36 to 7.07, so it can't be measured at 9.69, -7.19; use a narrower validation.log_snr"
    with pytest.raises(ConfigError, match=message):
        choose_levels(diffusion(), 4, (-10, 12.5))
    choose_levels(diffusion("flow_prediction"), 4, (-10, 12.5))


def test_between_timesteps_a_unet_predicts_what_lies_between(encoded):
    """As its embedding of the time is made of sines: the tiny UNet was trained at whole timesteps alone."""
    model, fixed = load("tiny"), battery(encoded, items=1)
    model.denoiser.eval()
    x, text = fixed.x0[0] + 0.5 * fixed.noise(np.array([0])), {name: value[:1] for name, value in fixed.text.items()}
    with torch.no_grad():
        at = {t: model.denoise(x, torch.tensor([t]), text) for t in (20, 20.5, 21, 500, 500.5, 501)}
    for t in (20, 500):
        off = (at[t + 0.5] - (at[t] + at[t + 1]) / 2).norm()
        assert off < 0.25 * (at[t + 1] - at[t]).norm()
        assert off < 0.002 * at[t].norm()


def test_images_are_chosen_by_weight(encoded):
    """Those of weight 0 never, and the others spread evenly."""
    weights = np.zeros(len(encoded))
    weights[[1, 3]] = 1.0
    fixed = make_battery(encoded, weights, diffusion(), LogSNRs.spread(-5, 5, 4), 0, 8, SAME)
    assert np.array_equal(torch.stack(fixed.x0), encoded.moments([1, 3])[0])


def test_timesteps_are_stratified_and_have_signal():
    assert choose_levels(diffusion(), 10, None).values.tolist() == [50 + 100 * k for k in range(10)]
    zero_terminal = diffusion("v_prediction", **SD15, rescale_betas_zero_snr=True)
    assert Timesteps.spread(zero_terminal, 1000).values.tolist() == list(range(999))


def test_timesteps_of_a_flow_have_the_noise_that_is_noted(encoded):
    process = diffusion("flow_prediction")
    fixed = battery(encoded, process, log_snr=None, timesteps=8)
    x0, noise = torch.stack(fixed.x0), torch.randn(3, 4, 16, 16)
    noised = fixed.levels.add_noise(process, x0, noise, np.array([0, 4, 7]))
    assert torch.allclose(noised.snr.double(), torch.tensor(fixed.facts["snr"])[[0, 4, 7]].double(), rtol=1e-4)


@pytest.mark.parametrize("log_snr", [(-5, 5), None])
def test_the_ratio_of_two_runs_is_the_same_in_every_space(encoded, log_snr):
    """Also between models of different prediction types and processes: all say an x0 wrong by 10 % or by 20 %."""
    losses = {}
    for prediction_type in SPACES if log_snr else SPACES[:3]:
        process = diffusion(prediction_type)
        fixed = number_the_items(battery(encoded, process, log_snr=log_snr))
        for error in (0.1, 0.2):
            errors = fixed.errors(Oracle(fixed, process, error), process, Accelerator(cpu=True))
            snr, to_v = fixed.levels.snr(process), fixed.levels.to_v(process)
            losses[prediction_type, error] = summary(errors, snr, to_v)["loss"]
            for name, scale in {"x0": 1 / snr, "v": to_v / snr}.items():
                losses[prediction_type, error, name] = np.exp(np.log((errors * scale).mean(0)).mean())
    runs = [key for key in losses if len(key) == 2]
    for first in runs:
        assert losses[first] == pytest.approx(losses["sample", first[1]], rel=1e-4)  # float32 latents and times
        for second in runs:
            ratio = losses[first] / losses[second]
            for space in ("x0", "v"):
                assert losses[*first, space] / losses[*second, space] == pytest.approx(ratio, rel=1e-6)


def test_summary_means():
    errors = np.array([[1.0, 2.0, 4.0], [3.0, 2.0, 4.0]])
    found = summary(errors, snr=np.array([4.0, 1.0, 0.5]), to_v=np.array([5.0, 2.0, 1.5]))
    assert found["loss"] == pytest.approx((2 * 2 * 4) ** (1 / 3))
    assert found["eps_mse"] == pytest.approx(8 / 3)
    assert found["x0_mse"] == pytest.approx((2 / 4 + 2 / 1 + 4 / 0.5) / 3)
    assert found["v_mse"] == pytest.approx((5 * 2 / 4 + 2 * 2 / 1 + 1.5 * 4 / 0.5) / 3)
    assert [found[f"snr_bin_{i}/eps"] for i in range(3)] == [4.0, 2.0, 2.0]


@pytest.mark.parametrize("step", [0, 1])
def test_before_the_first_step_weights_and_their_average_are_measured_at_once(encoded, step):
    process, measured = diffusion(), battery(encoded)
    model, forwards = Oracle(number_the_items(measured), process, 0.1), []
    model.denoiser = torch.nn.Identity()
    original = model.denoise
    model.denoise = lambda x, t, text: forwards.append(len(x)) or original(x, t, text)
    ema = SimpleNamespace(variants=lambda: {"": nullcontext(), "ema/": nullcontext()})
    metrics, errors = evaluate(measured, model, process, ema, Accelerator(), step)
    assert sum(forwards) == 3 * 16 * (1 if step == 0 else 2)
    assert np.array_equal(errors[""], errors["ema/"])
    assert metrics["val/loss"] == metrics["val/ema/loss"]


@pytest.mark.parametrize("log_snr", [(-5, 5), None])
def test_errors_are_kept_image_by_image(encoded, tmp_path, log_snr):
    levels = choose_levels(diffusion(), 16, log_snr)
    raw, averaged = np.random.default_rng(0).random((2, 3, 16))
    file = tmp_path / "validation" / "step.parquet"
    write_errors(file, levels.name, levels.values, {"": raw, "ema/": averaged})
    table = pq.read_table(file).to_pydict()
    row = 1 * 16 + 5
    assert (table["item"][row], table[levels.name][row]) == (1, levels.values[5])
    assert (table["eps"][row], table["ema_eps"][row]) == (raw[1, 5], averaged[1, 5])
    assert np.array_equal(read_errors(file)["ema/"], averaged)


def test_images_of_several_sizes_have_the_errors_that_they_have_alone(encoded):
    """However they are mixed; each with its own noise."""

    class Blind:
        def denoise(self, x, t, text):
            return x * 0.5

    mixed = battery(encoded, items=3)
    mixed.x0[1] = mixed.x0[1][:, :8, :].clone()
    process = diffusion("epsilon")
    found = mixed.errors(Blind(), process, Accelerator(cpu=True))
    for item in range(3):
        for place in (0, 15):
            cell = np.array([item * 16 + place])
            log_snr = torch.from_numpy(mixed.levels.values[[place]])
            noised = process.add_noise_at(mixed.x0[item][None], mixed.noise(cell), log_snr)
            assert found[item, place] == pytest.approx(
                (noised.x * 0.5 - noised.target).square().mean().item(), rel=1e-5
            )


def test_a_battery_of_timesteps_is_the_same_on_another_processor():
    """Processors round the schedule differently in the last digits; another schedule is another battery."""
    diffusion = Diffusion.from_scheduler(diffusers.DDIMScheduler())
    levels = Timesteps.spread(diffusion, 8)
    origin = Origin(images="these", autoencoder="this", encodings="those", chosen=[0, 2], seed=0)
    elsewhere = levels.describe(diffusion, origin)
    rounded = [float(np.nextafter(value, 0)) for value in elsewhere["snr"]]
    begun = levels.as_begun({"snr": rounded}).describe(diffusion, origin)
    assert begun["snr"] == rounded
    assert begun["hash"] == levels.as_begun(begun).describe(diffusion, origin)["hash"] != elsewhere["hash"]
    other = [1.001 * value for value in rounded]
    assert levels.as_begun({"snr": other}).describe(diffusion, origin) == elsewhere
    assert levels.as_begun({"snr": "none"}).describe(diffusion, origin) == elsewhere
