"""The layers that ComfyUI's loader maps in Stable Diffusion 1.x and XL, by name: all of ours are among them.

The tables are facts of comfy/utils.py (UNET_MAP_ATTENTIONS, TRANSFORMER_BLOCKS, UNET_MAP_RESNET, UNET_MAP_BASIC,
unet_to_diffusers), comfy/lora.py (LORA_CLIP_MAP, model_lora_keys_clip) and comfy/supported_models.py (the depths).
"""

import pytest
import transformers
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig

from t2i.models.lora_files import kohya_prefixes
from t2i.models.original_names import unet_names
from t2i.models.portable import original_keys
from t2i.models.single_file_settings import SETTINGS

IN_ATTENTION = ("proj_in", "proj_out", "norm")
IN_TRANSFORMER = (
    *("norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2"),
    *(f"attn{place}.{name}" for place in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out.0")),
)
IN_RESNET = {
    **{"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj"},
    **{"out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "conv_shortcut"},
}
BASIC = {
    **{"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"},
    **{"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"},
    **{"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"},
}
CLIP = ("mlp.fc1", "mlp.fc2", *(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")))
DEPTHS = {  # of transformers on the way down, in the middle, and on the way up from the last
    "v1": ([1, 1, 1, 1, 1, 1, 0, 0], 1, [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
    "xl_base": ([0, 0, 2, 2, 10, 10], 10, [10, 10, 10, 2, 2, 2, 0, 0, 0]),
}
PER_BLOCK = 2  # resnets


def unet_to_diffusers(down, middle, up):
    """The name of each layer in Diffusers -> in the original layout."""
    table = dict(BASIC)

    def resnet(place, original):
        table.update({f"{place}.{ours}": f"{original}.{theirs}" for theirs, ours in IN_RESNET.items()})

    def attention(place, original, depth):
        inside = [*IN_ATTENTION] if depth else []
        inside += [f"transformer_blocks.{layer}.{name}" for layer in range(depth) for name in IN_TRANSFORMER]
        table.update({f"{place}.{name}": f"{original}.{name}" for name in inside})

    for block in range(len(down) // PER_BLOCK):
        first = 1 + (PER_BLOCK + 1) * block
        for i in range(PER_BLOCK):
            resnet(f"down_blocks.{block}.resnets.{i}", f"input_blocks.{first + i}.0")
            depth = down[PER_BLOCK * block + i]
            attention(f"down_blocks.{block}.attentions.{i}", f"input_blocks.{first + i}.1", depth)
        table[f"down_blocks.{block}.downsamplers.0.conv"] = f"input_blocks.{first + PER_BLOCK}.0.op"
    attention("mid_block.attentions.0", "middle_block.1", middle)
    for i in (0, 1):
        resnet(f"mid_block.resnets.{i}", f"middle_block.{2 * i}")
    for place, depth in enumerate(up):
        block, i = divmod(place, PER_BLOCK + 1)
        resnet(f"up_blocks.{block}.resnets.{i}", f"output_blocks.{place}.0")
        attention(f"up_blocks.{block}.attentions.{i}", f"output_blocks.{place}.1", depth)
        if i == PER_BLOCK:
            table[f"up_blocks.{block}.upsamplers.0.conv"] = f"output_blocks.{place}.{2 if depth else 1}.conv"
    return table


def weighted(network):
    return [name for name, part in network.named_modules() if getattr(part, "weight", None) is not None]


@pytest.mark.parametrize("kind", DEPTHS)
def test_every_layer_of_the_unet_is_known(kind):
    """Of the network in its published size, under both names: those of Diffusers and the original ones."""
    with init_empty_weights():
        layers = weighted(UNet2DConditionModel.from_config(SETTINGS[kind]["unet/config"]))
    table, originals = unet_to_diffusers(*DEPTHS[kind]), unet_names(layers)
    assert len(layers) > 280
    assert [name for name in layers if table.get(name) != originals[name]] == []
    known = {f"lora_unet_{name.replace('.', '_')}" for name in table}
    prefix = kohya_prefixes({"unet": True})["unet"]
    assert {prefix + name.replace(".", "_") for name in layers} <= known


@pytest.mark.parametrize(("kind", "prefixes"), [("v1", ["lora_te_"]), ("xl_base", ["lora_te1_", "lora_te2_"])])
def test_every_adapted_layer_of_the_text_encoders_is_known(kind, prefixes):
    for part, prefix in zip(("text_encoder", "text_encoder_2"), prefixes, strict=False):
        config = SETTINGS[kind][f"{part}/config"]
        with init_empty_weights():
            encoder = getattr(transformers, config["architectures"][0])(CLIPTextConfig(**config))
        layers = [name for name in weighted(encoder) if name.endswith(CLIP)]
        ours = {prefix + name.replace(".", "_") for name in original_keys(encoder, dict.fromkeys(layers))}
        known = {
            f"{prefix}text_model_encoder_layers_{layer}_{name.replace('.', '_')}"
            for layer in range(config["num_hidden_layers"])
            for name in CLIP
        }
        assert ours == known
        components = {"unet": True, "text_encoder_2": True if len(prefixes) == 2 else None}
        assert kohya_prefixes(components)[part] == prefix
