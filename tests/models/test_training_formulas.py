"""Loss and gradient are those that Diffusers' training scripts compute for a family; each formula names its script."""

import functools

import pytest
import torch
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


PREDICTIONS = {"sd35": sd35}


def flow(predict, transformer, x0, noise, sigma, text):
    """The body of the loop in the scripts of flows, with the weighting `none`."""
    sigmas = sigma[:, None, None, None]
    noisy = (1.0 - sigmas) * x0 + sigmas * noise
    error = (predict(transformer, noisy, sigma * 1000, text).float() - (noise - x0).float()) ** 2
    return torch.mean(error.reshape(len(x0), -1), 1).mean()


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return functools.cache(lambda name: families.save(name, tmp_path_factory.mktemp("families") / name))


@pytest.mark.parametrize("family", PREDICTIONS)
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
    theirs = flow(PREDICTIONS[family], model.denoiser, x0, noise, diffusion.sigma[t].float(), text)
    assert torch.allclose(ours, theirs, rtol=1e-5)
    gradients = [torch.autograd.grad(value, weights, allow_unused=True) for value in (ours, theirs)]
    assert any(gradient is not None for gradient in gradients[0])
    for own, expected in zip(*gradients, strict=True):
        assert (own is None) == (expected is None)
        assert own is None or torch.allclose(own, expected, rtol=1e-5, atol=1e-5 * expected.abs().max())
