"""Adapters train on quantised bases: bit for bit after a resume, for the stock pipeline, and leave the base alone."""

import functools
import json
import logging

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from helpers import families, layouts
from helpers.launch import train as launch
from helpers.runs import compose, untimed
from safetensors.torch import load_file

from t2i.check import try_out
from t2i.models.adapter import Adapter
from t2i.models.lora_settings import AVERAGED
from t2i.models.quantized import LAYERS
from t2i.sampling.images import sample
from t2i.sampling.pipelines import load_pipeline

pytestmark = pytest.mark.slow
UNETS = ("sd15", "sdxl")
FAMILIES = [
    *("sd35", "sana", "flux1", "sd15"),
    *(pytest.param(name, marks=pytest.mark.long) for name in ("zimage", "qwen_image", "flux2", "sdxl")),
]
SETTINGS = {"seed": 0, "steps": 2, "guidance_scale": 2.0, "size": 64}
PROMPTS = ["red apple", "a cat face"]


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    def save(name):
        return (layouts if name in UNETS else families).save(name, tmp_path_factory.mktemp("bases") / name)

    return functools.cache(save)


def overrides(family, folder, quantize):
    return [
        *(f"model={family}", f"model.path={folder}", f"model.quantize={quantize}", "adapter=lora", "adapter.rank=4"),
        *("steps=5", "batch_size=4", "micro_batch_size=2", "validation.items=4", "validation.timesteps=2"),
        *("++samples.size=64", "samples.steps=1", "sample_every=5", "validate_every=5", "save_every=0"),
        *("optimizer.lr=0.01", "validation.quantization_cost=false"),
    ]


def base(network):
    """The state of all layers but the adapters, by its name in the network that was read."""
    state = {name.replace(".base_layer", ""): value for name, value in network.state_dict().items()}
    return {name: value.clone() for name, value in state.items() if "lora" not in name}


@pytest.mark.parametrize("quantize", LAYERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_resumes_exports_and_draws(train, folders, tmp_path, monkeypatch, family, quantize):
    path, after, drawn, export = folders(family), [], [], Adapter.export

    def watching(self, model, scheduler, trained, average, *rest):
        after.append(base(model.denoiser))
        with average.applied(torch.float32):
            drawn.append(sample(model.sampler(scheduler), model.prompts(PROMPTS), **SETTINGS))
        return export(self, model, scheduler, trained, average, *rest)

    monkeypatch.setattr(Adapter, "export", watching)
    settings = [*overrides(family, path, quantize), "gradient_checkpointing=true"]
    whole = train(tmp_path / "whole", *settings)
    assert whole.info["quantize"] == quantize
    assert all(np.isfinite(value) for line in whole.metrics() for value in line.values())
    assert train(tmp_path / "run", *settings, "stop_at=3").info["state"] == "paused"
    resumed = train(tmp_path / "run", *settings)
    ours, theirs = (load_file(run.folder / "model" / AVERAGED) for run in (resumed, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert any(value.any() for name, value in theirs.items() if "lora_B" in name)

    before = base(reading(family, path, quantize))
    assert before.keys() == after[0].keys()
    assert all(torch.equal(after[0][name], value) for name, value in before.items())

    opened = sample(load_pipeline(whole.folder), PROMPTS, **SETTINGS)
    assert np.abs(pixels(opened) - pixels(drawn[0])).mean() < 4  # text encoders are in float32 there
    pipeline = DiffusionPipeline.from_pretrained(path, dtype=torch.float32, safety_checker=None)
    pipeline.load_lora_weights(whole.folder / "model", weight_name=AVERAGED)
    denoiser = pipeline.unet if family in UNETS else pipeline.transformer
    assert "default_0" in denoiser.peft_config


def reading(family, path, quantize):
    """The quantised denoiser as it is read, which training then holds in float32 where it is not quantised."""
    from t2i.config.instantiate import build

    model = build(compose(f"model={family}", f"model.path={path}", f"model.quantize={quantize}"), "model")
    model.hold(torch.float32)
    return model.denoiser


def pixels(images):
    return np.stack([np.asarray(image, dtype=int) for image in images])


@pytest.mark.parametrize("quantize", ["nf4", pytest.param("int8", marks=pytest.mark.long)])
@pytest.mark.parametrize("family", ["sd35", "sd15"])
def test_dora_and_bf16_train_on_a_quantised_base(train, folders, tmp_path, family, quantize):
    """DoRA starts at the base: its norms are those of the dequantised weights."""
    runs = [
        train(tmp_path / adapter, *overrides(family, folders(family), quantize), f"adapter={adapter}", "precision=bf16")
        for adapter in ("lora", "dora")
    ]
    lora, dora = (run.metrics()[0]["val/loss"] for run in runs)
    assert dora == pytest.approx(lora, rel=2e-3)
    assert len(sample(load_pipeline(runs[1].folder), PROMPTS, **SETTINGS)) == 2


def test_text_encoders_are_trained_next_to_a_quantised_denoiser(train, folders, tmp_path):
    settings = [*overrides("sd15", folders("sd15"), "nf4"), "adapter.text_encoder=true"]
    run = train(tmp_path / "run", *settings, "validation.quantization_cost=true")
    names = load_file(run.folder / "model" / AVERAGED)
    assert {name.partition(".")[0] for name in names} == {"unet", "text_encoder"}
    assert len(sample(load_pipeline(run.folder), PROMPTS, **SETTINGS)) == 2
    assert run.info["quantization_cost"]["after"] == run.metrics()[0]["val/loss"]


@pytest.fixture
def costs(train, folders, tmp_path, caplog):
    """Train with these overrides; returns the run and what the log says of quantising."""
    caplog.set_level(logging.INFO)

    def costs(name, quantize, *further):
        caplog.clear()
        cache = f"cache_dir={tmp_path / 'cache'}"
        run = train(tmp_path / name, *overrides("sd35", folders("sd35"), quantize), "steps=1", cache, *further)
        return run, [record.getMessage() for record in caplog.records if "quantising" in record.getMessage()]

    return costs


def test_a_run_says_what_quantising_cost(costs):
    """The base is measured once: as the run that does not quantise measures it at step 0."""
    tells = "validation.quantization_cost=true"
    plain, said = costs("plain", "null", tells)
    assert said == []
    before = plain.metrics()[0]["val/loss"]
    run, (measuring, said) = costs("nf4", "nf4", tells)
    after = run.metrics()[0]["val/loss"]
    assert "measured, once" in measuring
    assert f"val/loss of the base from {before:.5f} to {after:.5f}" in said
    cost = json.loads((run.folder / "run.json").read_text())["quantization_cost"]
    assert (cost["before"], cost["after"]) == (before, after)
    assert cost["change"] == pytest.approx(after / before - 1)
    assert cost["interval"][0] < cost["change"] < cost["interval"][1]
    _, (said,) = costs("int8", "int8", tells)
    assert "quantising to int8" in said
    silent, said = costs("silent", "nf4")
    assert said == []
    assert untimed(silent.metrics()) == untimed(run.metrics())


def test_a_damaged_measurement_is_made_anew(costs, tmp_path):
    tells = "validation.quantization_cost=true"
    before = costs("first", "nf4", tells)[0].info["quantization_cost"]
    (stored,) = (tmp_path / "cache" / "unquantized").glob("*.parquet")
    stored.write_bytes(stored.read_bytes()[:100])
    run, said = costs("second", "nf4", tells)
    assert len(said) == 2
    assert run.info["quantization_cost"] == before


@pytest.mark.parametrize("quantize", LAYERS)
def test_check_tries_a_quantised_run(small, small_pipeline, tmp_path, quantize):
    cfg = compose(
        *small, "adapter=lora", f"model.quantize={quantize}", "steps=100", "batch_size=4", "micro_batch_size=4"
    )
    assert try_out(cfg, tmp_path / "run").hours > 0


@pytest.mark.long
def test_two_processes_train_a_quantised_base_as_one_does(small, folders, tmp_path):
    settings = [*small, *overrides("sd35", folders("sd35"), "nf4"), "validation.quantization_cost=true", "tracker=none"]
    for processes in (1, 2):
        run = launch(processes, [*settings, f"run={processes}"], tmp_path)
        assert run.returncode == 0, run.stderr
    lines = [(tmp_path / "multirun" / name / "metrics.jsonl").read_text().splitlines() for name in "12"]
    for one, two in zip(*lines, strict=True):
        for key in {"train/loss", "val/loss"} & json.loads(one).keys():
            assert json.loads(two)[key] == pytest.approx(json.loads(one)[key], rel=1e-4)
    infos = [json.loads((tmp_path / "multirun" / name / "run.json").read_text()) for name in "12"]
    assert infos[0]["quantization_cost"] == infos[1]["quantization_cost"]
