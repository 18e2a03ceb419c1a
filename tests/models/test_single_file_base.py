"""A single file is a model to train: the weights are those of the pipeline that it was made from."""

import shutil

import pytest
import torch
from diffusers import DDIMScheduler
from helpers.runs import compose
from safetensors.torch import save_file

from t2i.config import ConfigError
from t2i.config.instantiate import build
from t2i.models import stable_diffusion, stable_diffusion_xl
from t2i.models.lora import NoAdapter
from t2i.models.single_file import SINGLE

LOAD = {"sd15": stable_diffusion.load, "sd21": stable_diffusion.load, "sdxl": stable_diffusion_xl.load}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("T2I_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def single(layout, tmp_path):
    """Write the single file of a layout; returns the file and a folder with its settings and no weights."""

    def single(name):
        NoAdapter(single_file=True).save(LOAD[name](str(layout(name))).pipeline(DDIMScheduler()), tmp_path / "model")
        settings = tmp_path / "settings"
        shutil.copytree(layout(name), settings, ignore=shutil.ignore_patterns("*.safetensors"))
        return (tmp_path / "model" / SINGLE).rename(tmp_path / "anything.safetensors"), settings

    return single


@pytest.mark.parametrize("name", ["sd15", pytest.param("sd21", marks=pytest.mark.slow), "sdxl"])
def test_the_weights_are_those_of_the_pipeline(single, layout, name):
    file, settings = single(name)
    model, expected = LOAD[name](str(file), config=str(settings)), LOAD[name](str(layout(name)))
    networks = {"denoiser": (model.denoiser, expected.denoiser), "vae": (model.autoencoder, expected.autoencoder)}
    networks |= {part: (model.text_encoders[part], expected.text_encoders[part]) for part in expected.text_encoders}
    for part, (network, other) in networks.items():
        weights = network.state_dict()
        assert weights.keys() == other.state_dict().keys()
        assert all(torch.equal(weights[key], value) for key, value in other.state_dict().items()), part
    assert torch.equal(model.tokenize(["red apple"])["input_ids"], expected.tokenize(["red apple"])["input_ids"])


def test_the_scheduler_is_that_of_the_settings(single):
    file, settings = single("sd21")
    scheduler = build(compose("model=sd21", f"model.path={file}", f"model.config={settings}"), "scheduler")
    assert scheduler.config.prediction_type == "v_prediction"


def test_what_does_not_fit_is_named(single, layout, tmp_path):
    file, settings = single("sd15")
    with pytest.raises(ConfigError, match=r"needs the settings and tokenizers of .*model.config=FOLDER"):
        LOAD["sd15"](str(file))  # there is no network
    with pytest.raises(ConfigError, match=r"model.config=.* has no effect, as model.path=.* is no single file"):
        LOAD["sd15"](str(layout("sd15")), config=str(settings))
    with pytest.raises(ConfigError, match=r"model.config=nowhere must be a folder in the Diffusers layout"):
        LOAD["sd15"](str(file), config="nowhere")
    save_file({"lora_unet_x.alpha": torch.ones(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(ConfigError, match=r"lora.safetensors does not fit the settings of"):
        LOAD["sd15"](str(tmp_path / "lora.safetensors"), config=str(settings))
    (tmp_path / "old.ckpt").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"a .ckpt file can run code"):
        LOAD["sd15"](str(tmp_path / "old.ckpt"))
