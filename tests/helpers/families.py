"""Small pipelines of the transformer families with fresh weights, four or more latent channels, all text encoders."""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5Tokenizer

from helpers.layouts import text_encoder, tokenizer, vae

CAPTIONS = ["Red apple ", "the cat face on the table", "a heart"]
WORDS = ["a", "red", "apple", "cat", "face", "heart", "on", "the", "table"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}


def save(name: str, folder: Path) -> Path:
    """Write the small pipeline of a family, the name of an option of `model`, to `folder`."""
    torch.manual_seed(0)
    PIPELINES[name]().save_pretrained(folder)
    return folder


def _sd35() -> StableDiffusion3Pipeline:
    size = {"sample_size": 16, "patch_size": 2, "in_channels": 4, "out_channels": 4, "pos_embed_max_size": 16}
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            **size,
            **HEADS,
            num_layers=2,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
            caption_projection_dim=32,
            joint_attention_dim=88,
            pooled_projection_dim=24 + 20,
        ),
        vae=kl_vae(),
        text_encoder=text_encoder(CLIPTextModelWithProjection, projection_dim=24),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection, hidden_size=48, projection_dim=20),
        text_encoder_3=t5(88),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(pad_token="!"),
        tokenizer_3=t5_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


PIPELINES: dict[str, Callable[[], DiffusionPipeline]] = {"sd35": _sd35}


def kl_vae() -> AutoencoderKL:
    """The one of `tiny`, with a shift, which it does not have."""
    return vae(shift_factor=0.0609)


def t5(width: int) -> T5EncoderModel:
    """In bf16, as it is read."""
    layers = {"num_layers": 2, "num_heads": 2, "d_kv": 8, "d_ff": 32, "feed_forward_proj": "gated-gelu"}
    return T5EncoderModel(T5Config(vocab_size=64, d_model=width, **layers)).to(torch.bfloat16)


def t5_tokenizer() -> T5Tokenizer:
    letters = [(letter, -5.0) for letter in LETTERS]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    return T5Tokenizer(vocab=[*special, *letters, *((f"▁{word}", -2.0) for word in WORDS)], extra_ids=0)


# What a pipeline is called with besides what all take.
SAMPLING: dict[str, dict] = {}
# The inputs of a denoiser that come from the caption.
TEXT_INPUTS = ("encoder_hidden_states", "pooled_projections", "encoder_attention_mask")
# The parts that are read in bf16.
BF16 = ("text_encoder_3",)
# The classes of the blocks that FSDP gathers one by one.
BLOCKS = {"sd35": ("JointTransformerBlock",)}
