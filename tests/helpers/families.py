"""Small pipelines of the transformer families with fresh weights, four or more latent channels, all text encoders."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from tokenizers import Tokenizer, models, normalizers, trainers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
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


def _flux1() -> FluxPipeline:
    return FluxPipeline(
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            **HEADS,
            joint_attention_dim=24,
            pooled_projection_dim=32,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 8),
        ),
        vae=kl_vae(),
        text_encoder=text_encoder(CLIPTextModel),
        text_encoder_2=t5(24),
        tokenizer=tokenizer(),
        tokenizer_2=t5_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )


def _zimage() -> ZImagePipeline:
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 4, 8],
        axes_lens=[1024, 64, 64],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token.data, std=0.1)
    return ZImagePipeline(
        transformer=transformer,
        vae=kl_vae(),
        text_encoder=qwen(Qwen3Model, layers=3),
        tokenizer=qwen_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
    )


def _qwen_image() -> QwenImagePipeline:
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": 16}
    config = Qwen2_5_VLConfig(
        text_config={**text, "num_key_value_heads": 1, "vocab_size": 300, "rope_parameters": rope},
        vision_config=vision,
    )
    return QwenImagePipeline(
        transformer=QwenImageTransformer2DModel(
            in_channels=16, out_channels=4, num_layers=2, **HEADS, joint_attention_dim=16, axes_dims_rope=(4, 4, 8)
        ),
        vae=AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2, 4],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[-0.7, 0.1, 0.9, -0.2],
            latents_std=[2.8, 1.4, 0.6, 1.2],
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16),
        tokenizer=qwen_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )


def _flux2() -> Flux2KleinPipeline:
    size = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    autoencoder = AutoencoderKLFlux2(
        **size, block_out_channels=(8, 8, 8), layers_per_block=1, latent_channels=2, norm_num_groups=4
    )
    torch.nn.init.normal_(autoencoder.bn.running_mean)
    torch.nn.init.uniform_(autoencoder.bn.running_var, 0.2, 2.0)
    return Flux2KleinPipeline(
        transformer=Flux2Transformer2DModel(
            in_channels=8,
            num_layers=1,
            num_single_layers=1,
            **HEADS,
            joint_attention_dim=48,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
        vae=autoencoder,
        text_encoder=qwen(Qwen3ForCausalLM, layers=28),  # of which the pipeline takes the outputs of 9, 18 and 27
        tokenizer=qwen_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )


PIPELINES: dict[str, Callable[[], DiffusionPipeline]] = {
    "sd35": _sd35,
    "sana": _sana,
    "pixart": _pixart,
    "flux1": _flux1,
    "zimage": _zimage,
    "qwen_image": _qwen_image,
    "flux2": _flux2,
}


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


def qwen(kind: Any, layers: int) -> Any:
    """Qwen 3 in bf16, as it is read."""
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    size = {"hidden_size": 16, "intermediate_size": 16, "vocab_size": 300, "num_hidden_layers": layers}
    return kind(Qwen3Config(**size, **heads)).to(torch.bfloat16)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Bytes, and the two tokens of Qwen's chat template."""
    vocabulary = {token: number for number, token in enumerate(["<|endoftext|>", *sorted(ByteLevel.alphabet())])}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], extra_special_tokens=["<|im_start|>", "<|im_end|>"])
    turn = "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    answer = "<|im_start|>assistant\n{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    tokenizer.chat_template = f"{{% for message in messages %}}{turn}{{% endfor %}}{answer}"
    return tokenizer


def t5_tokenizer() -> T5Tokenizer:
    letters = [(letter, -5.0) for letter in LETTERS]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    return T5Tokenizer(vocab=[*special, *letters, *((f"▁{word}", -2.0) for word in WORDS)], extra_ids=0)


# What a pipeline is called with besides what all take.
SAMPLING: dict[str, dict[str, Any]] = {
    **{name: {"use_resolution_binning": False} for name in ("sana", "pixart")},
    "flux1": {"guidance_scale": 1.0},  # as in training
    "qwen_image": {"guidance_scale": None, "true_cfg_scale": 1.0},
}
# The inputs of a denoiser that come from the caption.
TEXT_INPUTS = (
    *("encoder_hidden_states", "pooled_projections", "encoder_attention_mask", "encoder_hidden_states_mask"),
    *("cap_feats", "txt_ids"),
)
# The parts that are read in bf16.
BF16 = {"sd35": ("text_encoder_3",), "sana": ("text_encoder",), "pixart": ("text_encoder",)} | {
    "flux1": ("text_encoder_2",),
    **dict.fromkeys(("zimage", "qwen_image", "flux2"), ("text_encoder",)),
}
# The classes of the blocks that FSDP gathers one by one.
BLOCKS = {
    "sd35": ("JointTransformerBlock",),
    "sana": ("SanaTransformerBlock",),
    "pixart": ("BasicTransformerBlock",),
    "flux1": ("FluxTransformerBlock", "FluxSingleTransformerBlock"),
    "zimage": ("ZImageTransformerBlock",),
    "qwen_image": ("QwenImageTransformerBlock",),
    "flux2": ("Flux2TransformerBlock", "Flux2SingleTransformerBlock"),
}
# How far the times that a pipeline gives may be from those of the schedule: DPM-Solver cuts them to integers.
ROUNDING = {"sana": 1.0}
