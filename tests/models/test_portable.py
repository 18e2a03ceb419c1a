"""Exported folders hold what Transformers 4 reads: its names of weights, settings and files of tokenizers."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline
from helpers import layouts
from safetensors import safe_open
from transformers import CLIPTokenizer

from t2i.models import stable_diffusion, stable_diffusion_xl
from t2i.models.lora import NoAdapter

LOAD = {"sd15": stable_diffusion.load, "sd21": stable_diffusion.load, "sdxl": stable_diffusion_xl.load}


@pytest.fixture(scope="module")
def exported(layout, tmp_path_factory):
    def exported(name):
        folder = tmp_path_factory.mktemp("exported") / name
        NoAdapter().save(LOAD[name](str(layout(name))).pipeline(layouts.DDIMScheduler()), folder)
        return folder

    return exported


@pytest.mark.slow
@pytest.mark.parametrize("name", LOAD)
def test_weights_of_text_encoders_have_their_original_names(exported, name):
    """Those of the published files, such as text_encoder/model.safetensors of Stable Diffusion 1.5."""
    for encoder in exported(name).glob("text_encoder*"):
        with safe_open(encoder / "model.safetensors", "pt") as file:
            names = set(file.keys())
        assert "text_model.embeddings.token_embedding.weight" in names
        assert all(name.startswith(("text_model.", "text_projection.")) for name in names)
        config = json.loads((encoder / "config.json").read_text())
        assert config["torch_dtype"] == config["dtype"] == "float32"


@pytest.mark.parametrize("name", LOAD)
def test_tokenizers_have_the_files_of_the_tokenizer_in_python(exported, layout, name):
    for folder in exported(name).glob("tokenizer*"):
        vocabulary = json.loads((folder / "vocab.json").read_text())
        merges = (folder / "merges.txt").read_text().splitlines()
        before = CLIPTokenizer.from_pretrained(layout(name) / folder.name)
        assert vocabulary == before.get_vocab()
        assert len(merges) > 1000
        after = CLIPTokenizer.from_pretrained(folder)
        assert after("red apple!").input_ids == before("red apple!").input_ids


@pytest.mark.slow
@pytest.mark.parametrize("name", LOAD)
def test_the_installed_libraries_read_the_same_weights(exported, layout, name):
    before, after = DiffusionPipeline.from_pretrained(layout(name)), DiffusionPipeline.from_pretrained(exported(name))
    for part, network in before.components.items():
        if isinstance(network, torch.nn.Module):
            weights, expected = after.components[part].state_dict(), network.state_dict()
            assert weights.keys() == expected.keys()
            assert all(torch.equal(weights[key], value) for key, value in expected.items()), part
