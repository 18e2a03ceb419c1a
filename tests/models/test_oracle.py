"""A right prediction, sampled by the stock pipelines of the UNets, is the image: for every prediction type."""

import pytest
import torch
from helpers.oracle import Oracle
from helpers.runs import compose
from hydra.utils import instantiate

from t2i.diffusion.process import Diffusion

CAPTIONS = ["red apple", "cat face", "a heart"]
SCHEDULERS = {
    "epsilon": "scheduler=epsilon",
    "v_prediction": "scheduler=v_prediction",
    "sample": "scheduler.prediction_type=sample",
    "zero terminal SNR": "scheduler=zero_terminal_snr",
    "flow_prediction": "scheduler=flow_matching",
    "shifted flow": "scheduler=flow_matching scheduler.shift=3",
}


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def model_and_path(request, layout):
    path = layout(request.param)
    return instantiate(compose(f"model={request.param}", f"model.path={path}").model), path


@pytest.mark.slow
@pytest.mark.parametrize(("size", "batch"), [((16, 16), 1), ((8, 24), 3)])
@pytest.mark.parametrize("option", SCHEDULERS)
def test_the_stock_sampling_loop_returns_the_image_if_the_prediction_is_right(model_and_path, option, size, batch):
    model, path = model_and_path
    # With linspace, Diffusers' DDIM steps to other timesteps than it samples next.
    scheduler = instantiate(compose(f"model.path={path}", *SCHEDULERS[option].split()).scheduler)
    if scheduler.config.timestep_spacing == "linspace" and "flow" not in option:
        scheduler.register_to_config(timestep_spacing="leading")
    x0 = torch.randn(batch, 4, *size, generator=torch.Generator().manual_seed(1))
    oracle = Oracle(model, Diffusion.from_scheduler(scheduler), x0, model.embed(CAPTIONS[:batch]))
    oracle.rounding = 1.0 if "flow" in option else 1e-4  # DPM-Solver cuts a flow's times to integers
    pipeline = model.pipeline(scheduler)
    oracle.scheduler = pipeline.scheduler
    settings = {"num_inference_steps": 4, "guidance_scale": 1.0, "height": 4 * size[0], "width": 4 * size[1]}
    with oracle.answering(oracle):
        found = pipeline(CAPTIONS[:batch], output_type="latent", **settings).images
    assert oracle.steps == 4
    assert oracle.differences == []
    remaining = getattr(
        scheduler, "final_alpha_cumprod", torch.tensor(1.0)
    )  # DDIM may leave the first timestep's noise
    expected = remaining.sqrt() * x0 + (1 - remaining).sqrt() * oracle.noise
    assert (found - expected).norm() < 1e-3 * x0.norm()
