"""A run is the base of the next: its pipeline, or its base with its adapters merged, wherever both have moved to."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from helpers.runs import compose
from omegaconf import OmegaConf

from t2i.config import ConfigError
from t2i.models.bases import base_of
from t2i.models.loading import locate
from t2i.models.lora import LoRA
from t2i.models.merging import merged_weights
from t2i.models.stable_diffusion import load
from t2i.sampling.pipelines import load_pipeline


@pytest.fixture
def project(layout, tmp_path, monkeypatch):
    """A folder with base/ and multirun/lora, a LoRA run with a relative model.path; returns it and its merged UNet."""
    monkeypatch.setenv("T2I_CACHE", str(tmp_path / "cache"))
    project = tmp_path / "project"
    shutil.copytree(layout("sd15"), project / "base")
    run = project / "multirun" / "lora"
    adapter = LoRA(
        **{"rank": 2, "alpha": 3.0, "dropout": 0.0, "init": "gaussian", "text_encoder": True},
        target_modules=["to_q", "conv1"],
        text_modules=["q_proj"],
    )
    model = adapter.attach(load(str(layout("sd15"))))
    for weight in model.denoiser.parameters():
        if weight.requires_grad:
            weight.data.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    adapter.save(model.pipeline(DDIMScheduler(prediction_type="v_prediction")), run / "model")
    OmegaConf.save(OmegaConf.create({"model": {"path": "base"}}), run / "config.yaml")
    return project, merged_weights(model.model.denoiser)


@pytest.mark.slow
def test_the_base_of_a_lora_run_is_found_from_anywhere(project, monkeypatch, tmp_path):
    folder, merged = project
    monkeypatch.chdir(tmp_path)
    moved = folder.rename(tmp_path / "moved")
    pipeline = locate(moved / "multirun" / "lora")
    unet = UNet2DConditionModel.from_pretrained(pipeline, subfolder="unet").state_dict()
    assert unet.keys() == merged.keys()
    assert all(torch.allclose(unet[name], value, atol=1e-6) for name, value in merged.items())
    assert DDIMScheduler.load_config(pipeline, subfolder="scheduler")["prediction_type"] == "v_prediction"
    assert locate(moved / "multirun" / "lora") == pipeline  # merged once
    for file in (moved / "base" / "vae").iterdir():  # so that nothing is encoded anew
        assert (Path(pipeline) / "vae" / file.name).read_bytes() == file.read_bytes()
    assert load(pipeline).text_encoders


def test_a_run_alone_finds_its_base_where_its_command_was_given(project, tmp_path):
    folder, _ = project
    run = (folder / "multirun" / "lora").rename(tmp_path / "alone")
    assert base_of(run, "base") == "base"  # as before: the message names it
    (run / ".hydra").mkdir()
    OmegaConf.save(OmegaConf.create({"hydra": {"runtime": {"cwd": str(folder)}}}), run / ".hydra" / "hydra.yaml")
    assert base_of(run, "base") == str(folder / "base")
    assert base_of(run, "tiny") == "tiny"


@pytest.mark.slow
@pytest.mark.parametrize("moved", [False, True])
def test_a_lora_run_is_sampled_from_another_folder(project, monkeypatch, tmp_path, moved):
    """With the adapters on their base, wherever the command is given and wherever both have moved to."""
    folder, merged = project
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run = (folder.rename(elsewhere / "moved") if moved else folder) / "multirun" / "lora"
    written = OmegaConf.to_container(compose("model=sd15", "model.path=base"), resolve=True)
    OmegaConf.save(OmegaConf.create(written), run / "config.yaml")
    monkeypatch.chdir(elsewhere)
    unet = load_pipeline(run).unet
    layer = unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    assert torch.allclose(
        layer.base_layer.weight + layer.get_delta_weight("default_0"),
        merged["mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"],
        atol=1e-6,
    )


def test_the_base_of_a_complete_run_is_its_model(project):
    run = project[0] / "multirun" / "complete"
    shutil.copytree(project[0] / "base", run / "model")
    OmegaConf.save(OmegaConf.create({"model": {"path": "base"}}), run / "config.yaml")
    assert locate(run) == str(run / "model")


def test_a_run_without_a_model_is_named(tmp_path):
    OmegaConf.save(OmegaConf.create({"model": {"path": "base"}}), tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match=r"is a run without a model that can be a base: it has not finished"):
        locate(tmp_path)


@pytest.fixture
def copied(layout, tmp_path):
    return shutil.copytree(layout("sd15"), tmp_path / "copied")


def change(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize("kind", ["Img2Img", "Inpaint"])
def test_a_sister_pipeline_with_the_same_parts_is_trained(copied, kind):
    change(copied / "model_index.json", _class_name=f"StableDiffusion{kind}Pipeline")
    assert load(str(copied)).denoiser_content


def test_a_denoiser_that_takes_a_mask_is_named(copied):
    change(copied / "model_index.json", _class_name="StableDiffusionInpaintPipeline")
    change(copied / "unet" / "config.json", in_channels=9)
    with pytest.raises(ConfigError, match=r"StableDiffusionInpaintPipeline whose denoiser takes 9 channels"):
        load(str(copied))


def test_a_tokenizer_without_a_length_has_that_of_its_encoder(copied, layout):
    file = copied / "tokenizer" / "tokenizer_config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "model_max_length"}))
    model, expected = load(str(copied)), load(str(layout("sd15")))
    assert torch.equal(model.tokenize(["red apple"])["input_ids"], expected.tokenize(["red apple"])["input_ids"])


def test_weights_as_bin_come_with_the_command_that_converts_them(copied):
    (copied / "unet" / "diffusion_pytorch_model.safetensors").rename(copied / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"no safetensors in unet/; .* can run code.*save_pretrained\('NEW'\)"):
        load(str(copied))
