"""Loss and gradient are those that Diffusers' training scripts compute for a family; each formula names its script."""

import functools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    DDPMScheduler,
    Flux2KleinPipeline,
    FluxPipeline,
    QwenImagePipeline,
)
from helpers import families
from helpers.families import CAPTIONS
from helpers.runs import compose
from hydra.utils import instantiate

from t2i.diffusion.losses import MSE
from t2i.diffusion.process import Diffusion
from t2i.diffusion.residuals import Squared
from t2i.models.schedulers import pretrained_scheduler


def sd35(transformer, noisy, t, text):
    """train_dreambooth_sd3.py: timesteps as they are, prediction of noise − x0."""
    text_inputs = {"encoder_hidden_states": text["encoder_hidden_states"], "pooled_projections": text["pooled"]}
    return transformer(hidden_states=noisy, timestep=t, **text_inputs, return_dict=False)[0]


def sana(transformer, noisy, t, text):
    """train_dreambooth_lora_sana.py: timesteps as they are, prediction of noise − x0."""
    text_inputs = {"encoder_hidden_states": text["encoder_hidden_states"], "encoder_attention_mask": text["mask"]}
    return transformer(hidden_states=noisy, timestep=t, **text_inputs, return_dict=False)[0]


def flux1(transformer, noisy, t, text):
    """train_dreambooth_flux.py with --guidance_scale=1: packed, times in [0, 1], positions of the patches."""
    batch, channels, height, width = noisy.shape
    positions = FluxPipeline._prepare_latent_image_ids(batch, height // 2, width // 2, "cpu", torch.float32)
    prediction = transformer(
        hidden_states=FluxPipeline._pack_latents(noisy, batch, channels, height, width),
        timestep=t / 1000,
        guidance=torch.tensor([1.0]).expand(batch),
        pooled_projections=text["pooled"],
        encoder_hidden_states=text["encoder_hidden_states"],
        txt_ids=torch.zeros(text["encoder_hidden_states"].shape[1], 3),
        img_ids=positions,
        return_dict=False,
    )[0]
    return FluxPipeline._unpack_latents(prediction, height=height * 4, width=width * 4, vae_scale_factor=4)


def zimage(transformer, noisy, t, text):
    """train_dreambooth_lora_z_image.py: lists, time from noise to image, the negative of the output."""
    captions = [hidden[mask.bool()] for hidden, mask in zip(text["encoder_hidden_states"], text["mask"], strict=True)]
    images = list(noisy.unsqueeze(2).unbind(dim=0))
    prediction = transformer(images, (1000 - t) / 1000, captions, return_dict=False)[0]
    return -torch.stack(prediction, dim=0).squeeze(2)


def qwen_image(transformer, noisy, t, text):
    """train_dreambooth_lora_qwen_image.py: packed, times in [0, 1], a mask for the captions."""
    batch, channels, height, width = noisy.shape
    longest = int(text["mask"].sum(1).max())
    prediction = transformer(
        hidden_states=QwenImagePipeline._pack_latents(noisy, batch, channels, height, width),
        encoder_hidden_states=text["encoder_hidden_states"][:, :longest],
        encoder_hidden_states_mask=text["mask"][:, :longest],
        timestep=t / 1000,
        img_shapes=[(1, height // 2, width // 2)] * batch,
        return_dict=False,
    )[0]
    return QwenImagePipeline._unpack_latents(prediction, height * 4, width * 4, 4)[:, :, 0]


def flux2(transformer, noisy, t, text):
    """train_dreambooth_lora_flux2_klein.py: sequences of patches, times in [0, 1], four positions of each token."""
    pipeline, positions = Flux2KleinPipeline, Flux2KleinPipeline._prepare_latent_ids(noisy)
    prediction = transformer(
        hidden_states=pipeline._pack_latents(noisy),
        timestep=t / 1000,
        guidance=None,
        encoder_hidden_states=text["encoder_hidden_states"],
        txt_ids=pipeline._prepare_text_ids(text["encoder_hidden_states"]),
        img_ids=positions,
        return_dict=False,
    )[0]
    return pipeline._unpack_latents_with_ids(prediction, positions)


FLOWS = {"sd35": sd35, "sana": sana, "flux1": flux1, "zimage": zimage, "qwen_image": qwen_image, "flux2": flux2}


def pixart(transformer, noisy, t, text):
    """train_pixart_controlnet_hf.py, without the ControlNet: half of the output is the prediction of the noise."""
    text_inputs = {"encoder_hidden_states": text["encoder_hidden_states"], "encoder_attention_mask": text["mask"]}
    sizes = {"resolution": None, "aspect_ratio": None}
    return transformer(noisy, timestep=t, added_cond_kwargs=sizes, **text_inputs).sample.chunk(2, 1)[0]


def flow_loss(predict, transformer, folder, x0, noise, noised, text):
    """The body of the loop in the scripts of flows, with the weighting `none`."""
    timesteps = noised.time
    sigmas = (timesteps / 1000)[:, None, None, None]
    noisy = (1.0 - sigmas) * x0 + sigmas * noise
    prediction = predict(transformer, noisy, timesteps, text)
    return torch.mean(((prediction.float() - (noise - x0).float()) ** 2).reshape(len(x0), -1), 1).mean()


def noise_loss(predict, transformer, folder, x0, noise, noised, text):
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    prediction = predict(transformer, scheduler.add_noise(x0, noise, noised.t), noised.t, text)
    return F.mse_loss(prediction.float(), noise.float(), reduction="mean")


FORMULAS = {name: partial(flow_loss, predict) for name, predict in FLOWS.items()} | {
    "pixart": partial(noise_loss, pixart)
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return functools.cache(lambda name: families.save(name, tmp_path_factory.mktemp("families") / name))


@pytest.mark.slow
@pytest.mark.parametrize("family", FORMULAS)
def test_loss_and_gradient_are_those_of_the_training_script(folders, family):
    model = instantiate(compose(f"model={family}", f"model.path={folders(family)}").model)
    diffusion = Diffusion.from_scheduler(pretrained_scheduler(str(folders(family)), None, None, None, None))
    generator, text = torch.Generator().manual_seed(0), model.embed(CAPTIONS)
    shape = model.encode(torch.zeros(3, 3, 48, 80))[0].shape
    x0, noise = torch.randn(2, *shape, generator=generator)
    t = torch.tensor([30, 480, 960])
    loss, weights = MSE(normalize=False, error=Squared()), list(model.denoiser.parameters())
    loss.prepare(diffusion, torch.ones(len(diffusion)) / len(diffusion))
    noised = diffusion.add_noise(x0, noise, t)
    ours = loss(model.denoise(noised.x, noised.time, text), noised).mean()
    theirs = FORMULAS[family](model.denoiser, folders(family), x0, noise, noised, text)
    assert torch.allclose(ours, theirs, rtol=1e-5)
    gradients = [torch.autograd.grad(value, weights, allow_unused=True) for value in (ours, theirs)]
    assert any(gradient is not None for gradient in gradients[0])
    largest = max(gradient.abs().max() for gradient in gradients[1] if gradient is not None)
    for own, expected in zip(*gradients, strict=True):
        assert (own is None) == (expected is None)
        assert own is None or torch.allclose(own, expected, rtol=1e-5, atol=1e-6 * largest)
