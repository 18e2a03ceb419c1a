"""Small pipelines with fresh weights in the layouts of the real ones; autoencoder and tokenizer are those of `tiny`."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from t2i.config.model_size import BUNDLED

STOCK = {"sd15": StableDiffusionPipeline, "sd21": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
BLOCKS = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}


def save(name: str, folder: Path) -> Path:
    """Write the layout of sd15, sd21 or sdxl to `folder`."""
    torch.manual_seed(0)
    {"sd15": _sd15, "sd21": _sd21, "sdxl": _sdxl}[name]().save_pretrained(folder)
    return folder


def _sd15() -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text_encoder(CLIPTextModel, hidden_act="quick_gelu"),
        tokenizer=tokenizer(),
        unet=UNet2DConditionModel(**BLOCKS, cross_attention_dim=32, attention_head_dim=2),
        scheduler=PNDMScheduler(**BETAS, skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sd21() -> StableDiffusionPipeline:
    heads = {"attention_head_dim": [1, 2], "use_linear_projection": True, "upcast_attention": True}
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text_encoder(CLIPTextModel, hidden_act="gelu", num_hidden_layers=3),
        tokenizer=tokenizer(pad_token="!"),
        unet=UNet2DConditionModel(**BLOCKS, cross_attention_dim=32, **heads),
        scheduler=DDIMScheduler(**BETAS, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl() -> StableDiffusionXLPipeline:
    conditions = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    heads = {"attention_head_dim": [1, 2], "use_linear_projection": True, "transformer_layers_per_block": [1, 2]}
    width = {"cross_attention_dim": 32 + 48, "projection_class_embeddings_input_dim": 24 + 6 * 8}
    return StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=text_encoder(CLIPTextModel, hidden_act="quick_gelu"),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection, hidden_size=48, projection_dim=24),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(pad_token="!"),
        unet=UNet2DConditionModel(**BLOCKS, **conditions, **heads, **width),
        scheduler=EulerDiscreteScheduler(**BETAS),
        add_watermarker=False,
    )


def vae(**settings) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(BUNDLED["tiny"], subfolder="vae", dtype=torch.float32, **settings)


def tokenizer(**settings) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(BUNDLED["tiny"], subfolder="tokenizer", **settings)


def text_encoder(kind: type, **settings):
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"vocab_size": 2000, "max_position_embeddings": 24}
    special = {"bos_token_id": 1998, "eos_token_id": 1999, "pad_token_id": 1999}
    return kind(CLIPTextConfig(**{"hidden_act": "gelu", **size, **tokens, **special, **settings}))
