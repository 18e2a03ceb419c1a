"""Small pipelines of the transformer families with fresh weights, four or more latent channels, all text encoders."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from tokenizers import Tokenizer, models, normalizers, trainers
from transformers import (
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

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


def _sana() -> SanaPipeline:
    cross = {"num_cross_attention_heads": 2, "cross_attention_head_dim": 16, "cross_attention_dim": 32}
    return SanaPipeline(
        transformer=SanaTransformer2DModel(
            in_channels=4, out_channels=4, num_layers=2, **HEADS, **cross, caption_channels=24, sample_size=32
        ),
        vae=AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            encoder_qkv_multiscales=((), (), (5,)),
            decoder_qkv_multiscales=((), (), (5,)),
            encoder_layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            scaling_factor=0.41407,
        ),
        text_encoder=gemma(24),
        tokenizer=gemma_tokenizer(),
        scheduler=DPMSolverMultistepScheduler(
            use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction", beta_schedule="linear"
        ),
    )


def _pixart() -> PixArtSigmaPipeline:
    return PixArtSigmaPipeline(
        transformer=PixArtTransformer2DModel(
            in_channels=4,
            out_channels=8,
            num_layers=2,
            **HEADS,
            cross_attention_dim=32,
            caption_channels=24,
            sample_size=16,
            interpolation_scale=1,
            use_additional_conditions=False,
        ),
        vae=vae(),
        text_encoder=t5(24),
        tokenizer=t5_tokenizer(),
        scheduler=DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=0.0001, beta_end=0.02),
    )


PIPELINES: dict[str, Callable[[], DiffusionPipeline]] = {"sd35": _sd35, "sana": _sana, "pixart": _pixart}


def kl_vae() -> AutoencoderKL:
    """The one of `tiny`, with a shift, which it does not have."""
    return vae(shift_factor=0.0609)


def t5(width: int) -> T5EncoderModel:
    """In bf16, as it is read."""
    layers = {"num_layers": 2, "num_heads": 2, "d_kv": 8, "d_ff": 32, "feed_forward_proj": "gated-gelu"}
    return T5EncoderModel(T5Config(vocab_size=64, d_model=width, **layers)).to(torch.bfloat16)


def gemma(width: int) -> Gemma2Model:
    """In bf16, as it is read."""
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    config = Gemma2Config(vocab_size=512, hidden_size=width, intermediate_size=32, **layers, sliding_window=64)
    return Gemma2Model(config).to(torch.bfloat16)


def gemma_tokenizer() -> GemmaTokenizer:
    """Pieces of words that are frequent in Sana's instruction."""
    instruction = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    pieces = Tokenizer(models.BPE())
    pieces.normalizer = normalizers.Replace(" ", "▁")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    alphabet = sorted({*LETTERS, *LETTERS.upper()})
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    pieces.train_from_iterator(" ".join(instruction).split(), trainer)
    learnt = json.loads(pieces.to_str())["model"]
    return GemmaTokenizer(vocab=learnt["vocab"], merges=[tuple(pair) for pair in learnt["merges"]])


def t5_tokenizer() -> T5Tokenizer:
    letters = [(letter, -5.0) for letter in LETTERS]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    return T5Tokenizer(vocab=[*special, *letters, *((f"▁{word}", -2.0) for word in WORDS)], extra_ids=0)


# What a pipeline is called with besides what all take.
SAMPLING = {name: {"use_resolution_binning": False} for name in ("sana", "pixart")}
# The inputs of a denoiser that come from the caption.
TEXT_INPUTS = ("encoder_hidden_states", "pooled_projections", "encoder_attention_mask")
# The parts that are read in bf16.
BF16 = {"sd35": ("text_encoder_3",), "sana": ("text_encoder",), "pixart": ("text_encoder",)}
# The classes of the blocks that FSDP gathers one by one.
BLOCKS = {
    "sd35": ("JointTransformerBlock",),
    "sana": ("SanaTransformerBlock",),
    "pixart": ("BasicTransformerBlock",),
}
# How far the times that a pipeline gives may be from those of the schedule: DPM-Solver cuts them to integers.
ROUNDING = {"sana": 1.0}
