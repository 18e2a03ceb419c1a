"""Several sources in one run: their parts of each batch, their weights in the loss, what is held out."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import image_folders
from helpers.encoders import Encoders
from PIL import Image

from t2i.config import ConfigError
from t2i.data.batches import Draws
from t2i.data.samplers import MixedOrder
from t2i.data.sources import sources
from t2i.diffusion.losses import MSE
from t2i.diffusion.process import Diffusion
from t2i.diffusion.residuals import Squared
from t2i.diffusion.timesteps import Uniform
from t2i.distributed.processes import start
from t2i.optim.ema import NoEMA
from t2i.optim.trained_weights import hold_weights
from t2i.training.loop import Hooks, Schedule, train
from t2i.training.meters import Meter
from t2i.training.step import Optimization, PyTorchStep

T = 20
SETTINGS = {**image_folders.SHARED, "caption_column": "text", "captions_per_line": False, "validation_share": 0}
FP32 = SimpleNamespace(weights="full", compute=torch.float32)


def write(folder, number, value=100, size=(16, 16), caption="an image"):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        pixels = np.random.default_rng([value, i]).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"{caption} {i}")
    return folder


def of(*given, **changes):
    """The data set of dataset=sources, at 16 pixels, of which nothing is held out unless the changes say so."""
    return sources(**SETTINGS | changes, sources=list(given))


@pytest.fixture
def mine(tmp_path):
    return write(tmp_path / "mine", 5, caption="sks dog")


@pytest.fixture
def others(tmp_path):
    return write(tmp_path / "others", 12, value=7, caption="a dog")


@pytest.mark.parametrize(("weights", "size"), [((1, 1), 2), ((1, 1), 8), ((3, 1), 4), ((2, 1), 3)])
def test_every_batch_has_the_part_of_each_source(weights, size):
    """Exactly, where it is a whole number of images; and within a source all images come equally often."""
    source = np.repeat([0, 1], [5, 12])
    order = MixedOrder(np.repeat(weights, [5, 12]) / np.repeat([5, 12], [5, 12]), source, seed=3)
    items = np.array([order[position] for position in range(9600)]).reshape(-1, size)
    expected = size * weights[0] // sum(weights)
    assert ((source[items] == 0).sum(1) == expected).mean() > 0.999  # a block may end within a batch
    counts = np.bincount(items.ravel())
    for own in (counts[:5], counts[5:]):
        assert own.max() - own.min() <= 2


def test_an_order_is_a_function_of_the_position():
    order, again = (MixedOrder(np.ones(9), np.repeat([0, 1, 2], 3), seed=0) for _ in range(2))
    places = [25_000, 3, 10_001, 9_999, 0]
    assert {place: order[place] for place in places} == {place: again[place] for place in reversed(places)}


def test_repeats_and_weights(mine, others):
    by_repeats = of({"path": str(mine), "repeats": 4}, {"path": str(others)}).train
    assert np.bincount(by_repeats.sources, by_repeats.weights).tolist() == [20, 12]
    by_weight = of({"path": str(mine), "weight": 3}, {"path": str(others), "weight": 1}).train
    assert np.allclose(np.bincount(by_weight.sources, by_weight.weights), [5, 5 / 3])


class Linear:
    """A denoiser that is one convolution, so that gradients are quick."""

    def __init__(self):
        torch.manual_seed(0)
        self.denoiser = torch.nn.Conv2d(1, 1, 3, padding=1)

    def denoise(self, x, t, text):
        return self.denoiser(x)


def diffusion():
    angle = torch.linspace(0.1, 1.5, T).double()
    return Diffusion(angle.cos(), angle.sin(), torch.arange(T), "epsilon")


def examples_of(data, tmp_path, batch_size):
    draws = Draws(
        num_timesteps=T,
        timesteps=Uniform(),
        caption_dropout=0.0,
        noise_offset=0.0,
        input_perturbation=0.0,
        seed=0,
    )
    return data.train.examples(Encoders(), tmp_path / "cache", batch_size, draws)


def gradient_of_a_step(examples, batch_size, micro_batch_size):
    """The gradient by which the loop changes the weights in its first step, by gradient descent at a rate of one."""
    model, process, loss = Linear(), diffusion(), MSE(normalize=False, error=Squared())
    before = [weight.detach().clone() for weight in model.denoiser.parameters()]
    trained = hold_weights(model.denoiser, FP32)
    optimizer = torch.optim.SGD(trained.weights.values(), lr=1.0)
    never = functools.partial(lambda *_: None)
    schedule = {"seed": 0, "steps": 1, "first_step": 0, "num_workers": 0, "stop_at": None}
    schedule |= dict.fromkeys(("log_every", "validate_every", "sample_every", "evaluate_every", "save_every"), 0)
    hooks = dict.fromkeys(
        ("validate", "sample", "evaluate", "log", "snapshot", "save", "should_stop", "ends_early"), never
    )
    rates, accelerator = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0), start("no")
    optimization = Optimization(
        trained=trained, optimizer=optimizer, lr_scheduler=rates, ema=NoEMA(), max_grad_norm=float("inf")
    )
    train(
        PyTorchStep(
            model=model,
            diffusion=process,
            loss=loss,
            optimization=optimization,
            batch_size=batch_size,
            accelerator=accelerator,
        ),
        rates,
        examples,
        Schedule(**schedule, batch_size=batch_size, micro_batch_size=micro_batch_size),
        Hooks(**hooks, meter=Meter(batch_size, float("inf"), T, 5)),
        accelerator,
    )
    return [old - new.detach() for old, new in zip(before, model.denoiser.parameters(), strict=True)]


@pytest.mark.parametrize("micro_batch_size", [1, 2, 8])
def test_prior_preservation_is_the_sum_of_two_losses(mine, others, tmp_path, micro_batch_size):
    """Half of a batch's loss is that of the own images, half 0.3 times that of the class (Ruiz et al. 2022, eq. 2)."""
    prior = {"path": str(others), "weight": 1, "loss_weight": 0.3, "hold_out": False}
    data = of({"path": str(mine), "weight": 1}, prior)
    examples = examples_of(data, tmp_path, 8)
    ours = gradient_of_a_step(examples, 8, micro_batch_size)

    batch, model = examples.__getitems__(list(range(8))), Linear()
    noised = diffusion().add_noise(batch.x0, batch.noise, batch.t)
    errors = (model.denoise(noised.x, noised.time, batch.text) - batch.noise).square().mean((1, 2, 3))
    is_prior = torch.from_numpy(data.train.sources[batch.items.numpy()] == 1)
    assert is_prior.sum() == 4
    by_hand = (errors[~is_prior].mean() + 0.3 * errors[is_prior].mean()) / 2
    for own, expected in zip(ours, torch.autograd.grad(by_hand, model.denoiser.parameters()), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-6, atol=1e-6)


def test_what_is_held_out_stays_out(mine, others):
    """An image that is held out in one source is not trained on in another; a source may hold out nothing."""
    for i in range(5):
        (others / f"copy{i}.png").write_bytes((mine / f"{i}.png").read_bytes())
        (others / f"copy{i}.txt").write_text("a copy")
    data = of(
        {"path": str(mine)}, {"path": str(others), "hold_out": False}, validation_share=0.3, min_validation_samples=8
    )
    assert len(data.validation) >= 1
    assert all("sks dog" in caption for (caption,) in data.validation.captions)
    held_out = {data.validation.pixels(i).tobytes() for i in range(len(data.validation))}
    assert not held_out & {data.train.pixels(i).tobytes() for i in range(len(data.train))}
    assert len(data.train) == 5 + 12 + 5 - 2 * len(data.validation)


def test_sources_by_name_and_of_the_hub(mine, tmp_path):
    (tmp_path / "hub").mkdir()
    image_folders.as_embedded_parquet(tmp_path / "hub")
    named = {"own": {"path": str(mine)}, "hub": {"path": str(tmp_path / "hub"), "dataset": "hub", "repeats": 0.5}}
    train = sources(**SETTINGS, sources=named).train
    assert np.bincount(train.sources, train.weights).tolist() == [5, len(image_folders.CAPTIONS) / 2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"path": "mine", "resolution": 32},
            "dataset.sources.0.resolution is not a setting of a source; use dataset.res",
        ),
        ({"path": "mine", "follow_links": True}, "dataset.sources.0.follow_links is not a setting of a source"),
        ({"path": "mine", "repeat": 2}, "dataset.sources.0.repeat is not a setting of a source; use caption, "),
        ({"path": "mine", "repeats": 0}, "dataset.sources.0.repeats=0 must be positive"),
        ({"path": "mine", "loss_weight": -1}, "dataset.sources.0.loss_weight=-1 must be a number, at least 0"),
        ({"path": "mine", "repeats": 2, "weight": 1}, "give weight to all sources, or to none"),
        ({"path": "mine", "dataset": "tar"}, "dataset.sources.0.dataset=tar is not known; choose from folder, hub"),
        ({"repeats": 2}, "dataset.sources.0 has no path; name a folder of images, or a class_prompt"),
        ({"path": "mine", "class_images": 5}, "dataset.sources.0.class_images needs a class_prompt"),
        ({"class_prompt": " "}, "dataset.sources.0.class_prompt=  must be a text"),
        ({"path": ["mine"]}, r"dataset.sources.0.path=\['mine'\] must be a text; put it in quotes"),
        ({"path": "mine", "masks": 5}, "dataset.sources.0.masks=5 must be a text"),
        (
            {"path": "mine", "dataset": "hub", "image_column": None},
            "dataset.sources.0.image_column=None must be a text",
        ),
        ({"path": "mine", "keep_tags": True}, "dataset.sources.0.keep_tags=True must be a whole number"),
        ({"path": "mine", "split_folders": 1}, "dataset.sources.0.split_folders=1 must be true or false"),
        ("mine", r"dataset.sources.0=mine must be settings, such as \{path: mine\}"),
    ],
)
def test_wrong_settings_are_named(given, message):
    with pytest.raises(ConfigError, match=message):
        of(given)


def test_a_source_without_images_or_with_few_is_named(mine, others, tmp_path):
    (tmp_path / "bare").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "bare" / "1.png")
    with pytest.raises(ConfigError, match=r"dataset.sources: .* has no caption"):
        of({"path": str(mine)}, {"path": str(tmp_path / "bare")})
    with pytest.raises(ConfigError, match=r"dataset.sources.1: its 12 images are 0.01% of the batches"):
        of({"path": str(mine), "weight": 10_000}, {"path": str(others), "weight": 1})
