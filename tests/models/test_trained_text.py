"""Models whose text encoders are trained."""

import pytest
import torch
from diffusers import DDIMScheduler
from helpers.runs import compose
from hydra.utils import instantiate

from t2i.data.latent_cache import encode
from t2i.data.openmoji import openmoji
from t2i.diffusion.process import Diffusion
from t2i.evaluation.battery import make_battery
from t2i.evaluation.noise_levels import choose_levels
from t2i.models.stable_diffusion import load


def test_captions_are_cached_as_tokens(layout, tmp_path):
    """Embedding them in the step gives the embeddings that the cache would hold, and the battery stays the same."""
    split = openmoji(64, {"fruit": 1.0}).validation
    frozen = load(str(layout("sd15")))
    adapter = instantiate(compose("adapter=lora", "adapter.text_encoder=true").adapter)
    adapted = adapter.attach(load(str(layout("sd15"))))
    cached, tokens = (encode(split, model, tmp_path) for model in (frozen, adapted))
    assert tokens.text([0])["input_ids"].shape == (1, 24)
    x, t = torch.randn(2, 4, 16, 16), torch.tensor([10, 500])
    predictions = [frozen.denoise(x, t, cached.text([0, None])), adapted.denoise(x, t, tokens.text([0, None]))]
    assert torch.allclose(*predictions, atol=1e-5)

    process, same = Diffusion.from_scheduler(DDIMScheduler()), {"images": "these", "autoencoder": "this"}
    for levels in (choose_levels(process, 4, (-5, 5)), choose_levels(process, 4, None)):
        batteries = [make_battery(encoded, split.weights, process, levels, 0, 4, same) for encoded in (cached, tokens)]
        assert batteries[0].hash == batteries[1].hash


@pytest.mark.slow
def test_trained_text_encoders_sample_and_learn_in_bfloat16(train, layout, tmp_path):
    """A pipeline calls encoder and denoiser one by one; their matrices are in bfloat16 and their vectors are not."""
    adapted = ("adapter=lora", "adapter.text_encoder=true", "precision=bf16", "optimizer.lr=0.05")
    run = train(tmp_path, "model=sd15", f"model.path={layout('sd15')}", *adapted, "steps=1", "validate_every=1")
    assert [line["step"] for line in run.metrics() if "val/loss" in line] == [0, 1]
    assert len(list((tmp_path / "samples").glob("step-*.png"))) == 2
