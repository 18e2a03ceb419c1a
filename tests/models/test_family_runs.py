"""Every family trains from random weights, whole and with adapters, resumes, exports, and draws from the export."""

import functools

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from helpers import families
from safetensors.torch import load_file

from t2i.models.adapter import Adapter
from t2i.models.lora_settings import AVERAGED
from t2i.sampling.images import sample
from t2i.sampling.pipelines import load_pipeline

MODES = {"full": "adapter=none", "lora": "adapter=lora"}
ADAPTED = [name for name in families.PIPELINES if name != "pixart"]  # into which Diffusers loads no adapters
CASES = [*((name, "full") for name in families.PIPELINES), *((name, "lora") for name in ADAPTED)]
SETTINGS = {"seed": 0, "steps": 2, "guidance_scale": 2.0, "size": 64}
PROMPTS = ["red apple", "a cat face"]


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return functools.cache(lambda name: families.save(name, tmp_path_factory.mktemp("families") / name))


def weights(run):
    return {
        file.relative_to(run.folder): load_file(file)
        for file in sorted((run.folder / "model").rglob("*.safetensors"))
        if "transformer" in file.parts or "lora" in file.name
    }


def pixels(images):
    return np.stack([np.asarray(image, dtype=int) for image in images])


def overrides(family, folder):
    return [
        *(f"model={family}", f"model.path={folder}", "steps=5", "batch_size=4", "micro_batch_size=2"),
        *("validation.items=4", "validation.timesteps=2", "samples.size=64", "samples.steps=1", "adapter.rank=4"),
        *("sample_every=5", "validate_every=5", "save_every=0", "optimizer.lr=0.01"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "mode"), CASES)
def test_a_family_trains_resumes_exports_and_draws(train, folders, tmp_path, monkeypatch, family, mode):
    """The resumed run has the same bits; the loaded export draws the image that the model in memory draws."""
    base, prompts, drawn, export = folders(family), [], [], Adapter.export

    def drawing(self, model, scheduler, trained, average, *rest):
        with average.applied(torch.float32):
            prompts.append(model.prompts(PROMPTS))
            drawn.append(sample(model.sampler(scheduler), prompts[0], **SETTINGS))
        return export(self, model, scheduler, trained, average, *rest)

    monkeypatch.setattr(Adapter, "export", drawing)
    settings = [MODES[mode], *(text for text in overrides(family, base) if mode == "lora" or "rank" not in text)]
    whole = train(tmp_path / "whole", *settings)
    assert [line["step"] for line in whole.metrics()] == [0, 1, 2, 3, 4, 5]
    assert all(np.isfinite(value) for line in whole.metrics() for value in line.values())
    assert train(tmp_path / "run", *settings, "stop_at=3").info["state"] == "paused"
    ours, theirs = weights(train(tmp_path / "run", *settings)), weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[file][name], value) for file in theirs for name, value in theirs[file].items())

    if mode == "full":
        pipeline = stock(whole.folder / "model", family)
        pairs = zip(pipeline.transformer.parameters(), stock(base, family).transformer.parameters(), strict=True)
        assert any(not torch.equal(after, before) for after, before in pairs)
    else:
        pipeline = stock(base, family)
        pipeline.scheduler = type(pipeline.scheduler).from_pretrained(whole.folder / "model" / "scheduler")
        pipeline.load_lora_weights(whole.folder / "model", weight_name=AVERAGED)
    loaded = pixels(sample(pipeline, prompts[0], **SETTINGS))
    assert loaded.shape == (2, 64, 64, 3)
    assert np.abs(loaded - pixels(drawn[0])).max() <= 1
    opened = pixels(sample(load_pipeline(whole.folder), PROMPTS, **SETTINGS))
    assert np.abs(opened - loaded).mean() < 4  # its text encoders are in float32


def stock(folder, family):
    """Without text encoders: test_families.py compares those."""
    return DiffusionPipeline.from_pretrained(folder, dtype=torch.float32, **dict.fromkeys(families.BF16[family]))


@pytest.mark.slow
@pytest.mark.parametrize("family", ADAPTED)
def test_adapters_of_a_base_in_bf16_are_trained_in_float32(train, folders, tmp_path, family):
    run = train(tmp_path / "run", "adapter=lora", "precision=bf16", *overrides(family, folders(family)))
    assert all(np.isfinite(value) for line in run.metrics() for value in line.values())
    adapters = load_file(run.folder / "model" / AVERAGED)
    assert {tensor.dtype for tensor in adapters.values()} == {torch.float32}
    assert any(tensor.any() for name, tensor in adapters.items() if "lora_B" in name)
