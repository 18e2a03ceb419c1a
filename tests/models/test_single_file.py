"""One file in the original layout: Diffusers reads the pipeline's weights from it, bit for bit."""

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from helpers import layouts
from safetensors import safe_open

from t2i.config import ConfigError
from t2i.models import stable_diffusion, stable_diffusion_xl
from t2i.models.lora import NoAdapter
from t2i.models.merging import merged_weights
from t2i.models.single_file import SINGLE, check_single_file

LOAD = {"sd15": stable_diffusion.load, "sd21": stable_diffusion.load, "sdxl": stable_diffusion_xl.load}
# By which ComfyUI (comfy/model_detection.py, supported_models.py) and Automatic1111 tell the versions.
DETECTION = {
    "sd15": ["cond_stage_model.transformer.text_model.encoder.layers.0.layer_norm1.weight"],
    "sd21": ["cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"],
    "sdxl": [
        "conditioner.embedders.0.transformer.text_model.encoder.layers.0.layer_norm1.weight",
        "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight",
        "conditioner.embedders.1.model.text_projection",
        "model.diffusion_model.label_emb.0.0.weight",
    ],
}
OF_ALL = ["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.mid.attn_1.q.weight"]


@pytest.mark.slow
@pytest.mark.parametrize("name", LOAD)
def test_diffusers_reads_the_pipeline_from_the_file(layout, tmp_path, name):
    pipeline = LOAD[name](str(layout(name))).pipeline(DDIMScheduler())
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    vae = AutoencoderKL(**blocks, block_out_channels=[8, 8, 16], norm_num_groups=4, latent_channels=4)
    pipeline.register_modules(vae=vae)  # the layout's has no attention
    NoAdapter(single_file=True).save(pipeline, tmp_path)
    with safe_open(tmp_path / SINGLE, "pt") as file:
        names = set(file.keys())
        assert file.get_tensor(OF_ALL[1]).ndim == 4
    assert names >= {*DETECTION[name], *OF_ALL}
    read = layouts.STOCK[name].from_single_file(str(tmp_path / SINGLE), config=str(tmp_path), local_files_only=True)
    for part, network in pipeline.components.items():
        if isinstance(network, torch.nn.Module):
            weights, expected = getattr(read, part).state_dict(), network.state_dict()
            assert weights.keys() == expected.keys()
            assert all(torch.equal(weights[key], value) for key, value in expected.items()), part


def test_merging_leaves_the_network_as_it_is(layout):
    from peft import LoraConfig

    unet = LOAD["sd15"](str(layout("sd15"))).denoiser
    plain = {name: value.clone() for name, value in unet.state_dict().items()}
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "conv1"], init_lora_weights=False))
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    merged = merged_weights(unet)
    assert merged.keys() == plain.keys()
    differing = {name for name in plain if not torch.equal(merged[name], plain[name])}
    assert differing == {name for name in plain if name.endswith((".to_q.weight", ".conv1.weight"))}
    assert all(torch.equal(unet.state_dict()[name], value) for name, value in before.items())


def test_other_networks_have_no_original_layout():
    with pytest.raises(ConfigError, match=r"export.single_file=true: .* Linear has none that t2i writes; use false"):
        check_single_file(torch.nn.Linear(1, 1))
