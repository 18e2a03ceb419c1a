"""The networks of the families in their published sizes, built without weights."""

import diffusers
import pytest
import torch
import transformers
from helpers import families, published
from helpers.runs import compose

PUBLISHED = published.DENOISERS
NAMES = [(family, name) for family in families.PIPELINES for name in PUBLISHED[family]]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), NAMES, ids=[name for _, name in NAMES])
def test_size_adapted_layers_and_blocks(family, name):
    """The size is that of the file of weights, in which SD 3.5 keeps its positions, too."""
    facts = PUBLISHED[family][name]
    with torch.device("meta"):
        network = getattr(diffusers, facts["class"])(**facts["config"])
    assert sum(value.numel() for value in network.state_dict().values()) == pytest.approx(facts["parameters"], 0.02)

    linear = [name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)]
    for ending in compose(f"model={family}", "adapter=lora").adapter.target_modules:
        assert any(name.endswith(f".{ending}") for name in linear), ending
    present = {type(module).__name__ for module in network.modules()}
    assert present.issuperset(families.BLOCKS[family])
    assert set(families.BLOCKS[family]) <= set(network._no_split_modules)


@pytest.mark.parametrize("name", sorted(published.DENOISERS.keys() - families.PIPELINES.keys()))
def test_size_of_a_unet(name):
    for facts in published.DENOISERS[name].values():
        with torch.device("meta"):
            network = diffusers.UNet2DConditionModel(**facts["config"])
        assert sum(weight.numel() for weight in network.parameters()) == pytest.approx(facts["parameters"], 0.02)


CLASSES = {
    **dict.fromkeys(("CLIP ViT-L", "OpenCLIP ViT-H"), transformers.CLIPTextModel),
    "OpenCLIP ViT-bigG": transformers.CLIPTextModelWithProjection,
    "T5-XXL": transformers.T5EncoderModel,
    "Gemma 2 2B": transformers.Gemma2Model,
    "Qwen3 4B": transformers.Qwen3Model,
    "Qwen2.5-VL 7B": transformers.Qwen2_5_VLForConditionalGeneration,
    **dict.fromkeys(("KL of 4 channels", "KL of 16 channels"), diffusers.AutoencoderKL),
    "DC-AE f32c32": diffusers.AutoencoderDC,
    "KL of FLUX.2": diffusers.AutoencoderKLFlux2,
    "KL of Qwen-Image": diffusers.AutoencoderKLQwenImage,
}


@pytest.mark.parametrize("name", published.ENCODERS)
def test_size_of_an_encoder(name):
    facts, kind = published.ENCODERS[name], CLASSES[name]
    with torch.device("meta"):
        made = kind(kind.config_class(**facts["config"])) if hasattr(kind, "config_class") else kind(**facts["config"])
    assert sum(weight.numel() for weight in made.parameters()) == pytest.approx(facts["parameters"], 0.02)
