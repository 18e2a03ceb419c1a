"""What every family with a transformer has to do; the formulas of each are in test_training_formulas.py."""

import functools
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from helpers import families
from helpers.encoders import split_of
from helpers.families import CAPTIONS
from helpers.oracle import Oracle, first, same
from helpers.runs import compose
from hydra.utils import instantiate

from t2i.config import ConfigError
from t2i.data.latent_cache import encode
from t2i.diffusion.process import Diffusion
from t2i.models.schedulers import pretrained_scheduler

SIZES = [(16, 16), (8, 24)]  # of latents, height and width


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return functools.cache(lambda name: families.save(name, tmp_path_factory.mktemp("families") / name))


@pytest.fixture(scope="module", params=families.PIPELINES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family, folders):
    return load(family, folders(family))


@pytest.fixture(scope="module")
def embedded(model):
    """The captions, and the empty one."""
    return model.embed([*CAPTIONS, ""])


def load(name, folder):
    return instantiate(compose(f"model={name}", f"model.path={folder}").model)


def stock(model, folder):
    """The pipeline as any user loads it, in the types that t2i reads its parts in."""
    types = {"default": torch.float32, **model.parts.dtypes}
    return DiffusionPipeline.from_pretrained(folder, dtype=types)


def rows(text, *places):
    return {name: tensor[list(places)] for name, tensor in text.items()}


def latents_of(model, batch, size):
    """Latents of random images whose latents have this height and width."""
    scale = model.sampler(None).vae_scale_factor
    pixels = torch.rand(batch, 3, size[0] * scale, size[1] * scale, generator=torch.Generator().manual_seed(1))
    return model.encode(2 * pixels - 1)[0]


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_the_stock_sampling_loop_returns_the_image_if_the_prediction_is_right(model, folders, family, size, batch):
    """Sign, direction and unit of time, packing, scaling and shift are those of the pipeline, and all its inputs."""
    scheduler = pretrained_scheduler(str(folders(family)), None, None, None, None)
    x0, prompts = latents_of(model, batch, size), model.prompts(CAPTIONS[:batch])
    oracle = Oracle(model, Diffusion.from_scheduler(scheduler), x0, dict(prompts.text))
    pipeline = model.sampler(scheduler)
    oracle.scheduler, oracle.rounding = pipeline.scheduler, families.ROUNDING.get(family, 1e-4)
    scale, decoded = pipeline.vae_scale_factor, []
    decode = model.parts["vae"].decode
    settings = {"num_inference_steps": 4, "guidance_scale": 0.0, "height": scale * size[0], "width": scale * size[1]}
    with pytest.MonkeyPatch.context() as patch, oracle.answering(oracle):
        patch.setattr(model.parts["vae"], "decode", lambda z, **kwargs: decoded.append(z) or decode(z, **kwargs))
        pipeline(**prompts.request(range(batch), "cpu"), **settings | families.SAMPLING.get(family, {}))
        model.decode(x0)
    assert oracle.steps == 4
    assert oracle.differences == []
    found, expected = decoded
    assert found.shape == expected.shape
    assert (found - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("family", "terminal"),
    [("flux1", None), ("zimage", None), ("qwen_image", None), ("qwen_image", 0.02), ("flux2", None)],
)
def test_a_shift_by_resolution_is_that_of_the_stock_pipeline(folders, family, terminal, size):
    """At each step of the stock sampling loop, and a right prediction gives the image back.

    With shift_terminal the pipeline's times depend on the number of its steps.
    """
    model = load(family, folders(family))
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, shift=3.0, shift_terminal=terminal
    )
    mu = model.mu and partial(compute_empirical_mu, num_steps=4)  # Flux.2's depends on the number of steps
    diffusion = Diffusion.from_scheduler(scheduler).for_model(model.patch_size, mu)
    x0, prompts = latents_of(model, 1, size), model.prompts(CAPTIONS[:1])
    oracle = Oracle(model, diffusion, x0, dict(prompts.text))
    pipeline, decoded = model.sampler(scheduler), []
    oracle.scheduler, scale = pipeline.scheduler, pipeline.vae_scale_factor
    decode = model.parts["vae"].decode
    settings = {"num_inference_steps": 4, "guidance_scale": 0.0, "height": scale * size[0], "width": scale * size[1]}
    with pytest.MonkeyPatch.context() as patch, oracle.answering(oracle):
        patch.setattr(model.parts["vae"], "decode", lambda z, **kwargs: decoded.append(z) or decode(z, **kwargs))
        pipeline(**prompts.request([0], "cpu"), **settings | families.SAMPLING.get(family, {}))
        model.decode(x0)
    found, expected = decoded
    assert (found - expected).norm() < 1e-3 * expected.norm()
    for step in range(
        1, 4 if terminal is None else 1
    ):  # the first is all noise, and then a quarter of the time is over, a half, three quarters
        ours = diffusion.levels(torch.tensor([1000.0 * (1 - step / 4)]), x0).sigma
        assert ours.item() == pytest.approx(pipeline.scheduler.sigmas[step].item(), rel=1e-5)


@pytest.mark.slow
def test_captions_are_embedded_as_the_stock_pipeline_does(model, folders, family, embedded):
    """Also the empty caption, as the pipeline embeds it for guidance."""
    pipeline, received = stock(model, folders(family)), []

    def forward(*args, **kwargs):
        received.append(Oracle.bound(oracle, args, kwargs))
        raise StopIteration

    oracle = Oracle(model, None, torch.zeros(1), embedded)
    for places in ([0, 1, 2], [2]):
        oracle.denoiser, received[:] = pipeline.transformer, []
        prompts = [CAPTIONS[place] for place in places]
        guided = {"guidance_scale": 2.0, **families.SAMPLING.get(family, {})}
        with oracle.answering(forward), pytest.raises((StopIteration, RuntimeError)):
            pipeline(prompt=prompts, num_inference_steps=2, height=64, width=64, **guided)
        given = {name: received[0].get(name) for name in families.TEXT_INPUTS}
        guidance = len(first(received[0])) == 2 * len(places)
        text = rows(embedded, *([3] * len(places)), *places) if guidance else rows(embedded, *places)
        if family == "zimage":
            text = rows(embedded, *places, *([3] * len(places)))
        oracle.denoiser, oracle.text = model.denoiser, text
        x0 = torch.zeros(len(next(iter(text.values()))), *latents_of(model, 1, (16, 16)).shape[1:])
        seen, _ = oracle.denoised(x0, torch.ones(len(x0)), torch.zeros(2 * x0.numel()))
        assert any(value is not None for value in given.values())
        for name, value in given.items():
            assert same(value, seen.get(name), 1e-5), name


@pytest.mark.slow
def test_a_batch_of_unequal_captions_is_one_by_one(model, embedded):
    """In loss and gradient."""
    x0, generator = latents_of(model, 3, (8, 12)), torch.Generator().manual_seed(0)
    x, target = torch.randn(2, *x0.shape, generator=generator)
    t = torch.tensor([100.0, 500.0, 900.0])

    def gradients(*places):
        model.denoiser.zero_grad()
        prediction = model.denoise(x[list(places)], t[list(places)], rows(embedded, *places))
        loss = (prediction - target[list(places)]).square().flatten(1).mean(1).sum()
        loss.backward()
        return loss.detach(), [weight.grad.clone() for weight in model.denoiser.parameters() if weight.grad is not None]

    together, alone = gradients(0, 1, 2), [gradients(place) for place in range(3)]
    assert torch.allclose(together[0], sum(loss for loss, _ in alone), rtol=1e-5)
    largest = max(gradient.norm() for gradient in together[1])
    for whole, *parts in zip(together[1], *(own for _, own in alone), strict=True):
        assert (whole - sum(parts)).norm() <= 1e-5 * sum(parts).norm() + 1e-7 * largest


@pytest.mark.slow
def test_the_cache_changes_no_bit_of_a_prediction_or_gradient(model, family, tmp_path):
    """It stores no padding, and what comes out of a text encoder in bf16 as such."""
    captions = sorted(CAPTIONS)
    pixels = {"pixels": lambda index, view=0: np.full((64, 64, 3), 9, np.uint8)}
    cached = encode(split_of(list(enumerate(captions)), **pixels), model, tmp_path)
    x = torch.randn(4, *latents_of(model, 1, (8, 12)).shape[1:], generator=torch.Generator().manual_seed(0))
    t = torch.tensor([10.0, 100.0, 500.0, 900.0])

    def results(text):
        model.denoiser.zero_grad()
        prediction = model.denoise(x, t, text)
        prediction.square().mean().backward()
        return [prediction, *(weight.grad for weight in model.denoiser.parameters() if weight.grad is not None)]

    text = cached.text([*range(len(captions)), None])
    for found, now in zip(results(text), results(model.embed([*captions, ""])), strict=True):
        assert torch.equal(found, now)
    hidden, values = text["encoder_hidden_states"], cached.captions.packs[0].values["encoder_hidden_states"]
    places = int(text["mask"].sum()) if "mask" in text else hidden[..., 0].numel()
    assert len(values) == places * hidden.shape[-1]
    assert values.dtype == (torch.float32 if family == "sd35" else torch.bfloat16)  # beside T5, CLIP is in float32


@pytest.mark.slow
def test_text_encoders_are_read_in_bf16_and_only_to_embed(folders, family):
    """The denoiser is read in the type that it is held in."""
    model = load(family, folders(family))
    model.hold(torch.bfloat16)
    assert {weight.dtype for weight in model.denoiser.parameters()} == {torch.bfloat16}
    assert len(model.prompts([])) == 0
    assert not [name for name in model.parts.read if name.startswith("text_encoder")]
    assert len(model.prompts(CAPTIONS)) == len(CAPTIONS)
    for name in families.BF16[family]:
        assert {weight.dtype for weight in model.text_encoders[name].parameters()} == {torch.bfloat16}
    model.release()
    model.sampler(None)
    assert not [name for name in model.parts.read if name.startswith("text_encoder")]


def test_adapters_that_the_stock_pipeline_could_not_load_are_refused(folders):
    adapter = instantiate(compose("model=pixart", "adapter=lora").adapter)
    with pytest.raises(ConfigError, match="Diffusers has no adapters for a PixArtTransformer2DModel; use adapter=none"):
        adapter.attach(load("pixart", folders("pixart")))
