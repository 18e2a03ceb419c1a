"""Stable Diffusion 1.x, 2.x and XL in one file, in the original layout that ComfyUI, Automatic1111 and Forge load.

Names and shapes are those that Diffusers converts (`original_names`). 2.x and the larger encoder of XL are OpenCLIP's,
whose attention has one weight for query, key and value.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from t2i.config import ConfigError
from t2i.models.lora_files import predicts, specification, version_of
from t2i.models.merging import merged_weights
from t2i.models.original_names import unet_names, vae_name
from t2i.models.portable import original_keys

SINGLE = "single_file.safetensors"
OPEN_CLIP = {  # the beginning or a part of a name in Transformers -> in OpenCLIP
    "text_model.encoder.layers.": "transformer.resblocks.",
    "text_model.embeddings.token_embedding.": "token_embedding.",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.": "ln_final.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".self_attn.out_proj.": ".attn.out_proj.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}


def check_single_file(denoiser: Any) -> None:
    """Raise ConfigError if the original layout knows no such denoiser."""
    if type(denoiser).__name__ != "UNet2DConditionModel":
        raise ConfigError(
            "export.single_file=true: Stable Diffusion 1.x, 2.x and XL have an original layout, and "
            f"{type(denoiser).__name__} has none that t2i writes; use false"
        )


def write_single_file(pipeline: Any, file: Path) -> None:
    """Write the pipeline's networks, adapters merged, in float32."""
    version, architecture = version_of(pipeline)
    state = {f"model.diffusion_model.{name}": value for name, value in original_unet(pipeline.unet).items()}
    state |= {f"first_stage_model.{name}": value for name, value in original_vae(pipeline.vae).items()}
    first = _clip(pipeline.text_encoder)
    if version.startswith("sdxl"):
        state |= {f"conditioner.embedders.0.transformer.{name}": value for name, value in first.items()}
        second = open_clip(_clip(pipeline.text_encoder_2))
        state |= {f"conditioner.embedders.1.model.{name}": value for name, value in second.items()}
        if predicts(pipeline) == "v":
            state["v_pred"] = torch.tensor([])  # by which ComfyUI tells it
            if pipeline.scheduler.config.get("rescale_betas_zero_snr"):
                state["ztsnr"] = torch.tensor([])
    elif version.startswith("sd_v2"):
        state |= {f"cond_stage_model.model.{name}": value for name, value in open_clip(first).items()}
    else:
        state |= {f"cond_stage_model.transformer.{name}": value for name, value in first.items()}
    weights = {name: value.float().cpu().contiguous().clone() for name, value in state.items()}
    save_file(weights, file, {"format": "pt", **specification(pipeline, architecture)})


def original_unet(unet: Any) -> dict[str, Tensor]:
    state = merged_weights(unet)
    return {original: state[name] for name, original in unet_names(state).items()}


def original_vae(vae: Any) -> dict[str, Tensor]:
    """Its middle attention was made of convolutions."""
    blocks, state = len(vae.config.block_out_channels), {}
    for name, value in vae.state_dict().items():
        original = vae_name(name, blocks)
        is_matrix = re.search(r"attn_1\.(q|k|v|proj_out)\.weight$", original)
        state[original] = value[..., None, None] if is_matrix and value.ndim == 2 else value
    return state


def _clip(encoder: Any) -> dict[str, Tensor]:
    state = {name: value for name, value in merged_weights(encoder).items() if not name.endswith("position_ids")}
    return original_keys(encoder, state)


def open_clip(clip: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a text encoder of Transformers, as OpenCLIP has them."""
    state: dict[str, Tensor] = {}
    for name, value in clip.items():
        if name == "text_projection.weight":
            state["text_projection"] = value.T
            continue
        if found := re.fullmatch(r"(.*\.self_attn\.)q_proj\.(weight|bias)", name):
            parts = [clip[f"{found[1]}{part}_proj.{found[2]}"] for part in "qkv"]
            original = _open_clip_name(found[1]).removesuffix("self_attn.") + f"attn.in_proj_{found[2]}"
            state[original] = torch.cat(parts)
        elif not re.search(r"\.self_attn\.[kv]_proj\.", name):
            state[_open_clip_name(name)] = value
    return state


def _open_clip_name(name: str) -> str:
    for part, original in OPEN_CLIP.items():
        name = name.replace(part, original)
    return name
