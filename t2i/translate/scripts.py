"""The training scripts of Diffusers that `t2i translate` reads: their flags, with types and defaults.

Facts from the parsers of the scripts in https://github.com/huggingface/diffusers, examples/text_to_image and
examples/dreambooth, as of 2025. A default is the value if the flag is not given; ON is a switch without a value, and a
type stands for None, with values of that type.
"""

from dataclasses import dataclass
from typing import Any

ON = object()  # of a switch: off unless it is given
TEXTS = object()  # one or more texts after the flag, none by default
Flags = dict[str, Any]

COMMON: Flags = {
    "pretrained_model_name_or_path": str,
    "revision": str,
    "variant": str,
    "output_dir": str,
    "seed": int,
    "resolution": 512,
    "center_crop": ON,
    "train_batch_size": 4,
    "num_train_epochs": 1,
    "max_train_steps": int,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": ON,
    "learning_rate": 1e-4,
    "scale_lr": ON,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 500,
    "use_8bit_adam": ON,
    "allow_tf32": ON,
    "dataloader_num_workers": 0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_weight_decay": 1e-2,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "push_to_hub": ON,
    "hub_token": str,
    "hub_model_id": str,
    "logging_dir": "logs",
    "mixed_precision": str,
    "report_to": "tensorboard",
    "local_rank": -1,
    "checkpointing_steps": 500,
    "checkpoints_total_limit": int,
    "resume_from_checkpoint": str,
    "image_interpolation_mode": "lanczos",
}
UNET: Flags = {"snr_gamma": float, "enable_xformers_memory_efficient_attention": ON}
HUB_DATA: Flags = {
    "dataset_name": str,
    "dataset_config_name": str,
    "image_column": "image",
    "caption_column": "text",
    "cache_dir": str,
    "random_flip": ON,
}
CAPTIONED: Flags = {
    **{**HUB_DATA, "train_data_dir": str, "max_train_samples": int, "train_batch_size": 16, "num_train_epochs": 100},
    **{"prediction_type": str, "noise_offset": 0.0},
}
ONE_PROMPT: Flags = {"validation_prompt": str, "num_validation_images": 4}
XL: Flags = {"pretrained_vae_model_name_or_path": str, "enable_npu_flash_attention": ON, "resolution": 1024}
DREAMBOOTH: Flags = {
    "instance_data_dir": str,
    "instance_prompt": str,
    "class_data_dir": str,
    "class_prompt": str,
    "with_prior_preservation": ON,
    "prior_loss_weight": 1.0,
    "num_class_images": 100,
    "sample_batch_size": 4,
    "prior_generation_precision": str,
    "train_text_encoder": ON,
    "lr_num_cycles": 1,
    "lr_power": 1.0,
    **ONE_PROMPT,
}
OF_TOKENIZERS: Flags = {
    "tokenizer_name": str,
    "tokenizer_max_length": int,
    "pre_compute_text_embeddings": ON,
    "text_encoder_use_attention_mask": ON,
    "validation_images": TEXTS,
    "class_labels_conditioning": str,
}
DREAMBOOTH_OF_HUB: Flags = {
    **DREAMBOOTH,
    **{**HUB_DATA, "caption_column": str, "repeats": 1, "validation_epochs": 50},
    "text_encoder_lr": 5e-6,
    "optimizer": "AdamW",
    "prodigy_beta3": float,
    "prodigy_decouple": True,
    "prodigy_use_bias_correction": True,
    "prodigy_safeguard_warmup": True,
    "adam_weight_decay": 1e-4,
    "adam_weight_decay_text_encoder": 1e-3,
}
FLOW: Flags = {
    "weighting_scheme": "none",
    "logit_mean": 0.0,
    "logit_std": 1.0,
    "mode_scale": 1.29,
    "upcast_before_saving": ON,
}
LORA: Flags = {"rank": 4}
NEW_LORA: Flags = {**LORA, "lora_dropout": 0.0}


@dataclass(frozen=True)
class Script:
    """What a script trains, and how. model: option of t2i's group `model`."""

    name: str
    model: str
    flags: Flags
    lora: bool = False
    sampling: tuple[int, float] = (25, 7.5)  # denoising steps and guidance scale of its validation images

    @property
    def dreambooth(self) -> bool:
        return "instance_prompt" in self.flags

    @property
    def is_flow(self) -> bool:
        return "weighting_scheme" in self.flags


SCRIPTS = {
    script.name: script
    for script in (
        Script(
            "train_text_to_image.py",
            "sd15",
            {
                **{**COMMON, **CAPTIONED, **UNET, "output_dir": "sd-model-finetuned", "validation_prompts": TEXTS},
                **{"validation_epochs": 5, "input_perturbation": 0.0, "tracker_project_name": "text2image-fine-tune"},
                **{"use_ema": ON, "offload_ema": ON, "foreach_ema": ON, "non_ema_revision": str},
                **{"dream_training": ON, "dream_detail_preservation": 1.0},
            },
            sampling=(20, 7.5),
        ),
        Script(
            "train_text_to_image_lora.py",
            "sd15",
            {
                **{**COMMON, **CAPTIONED, **UNET, **ONE_PROMPT, **LORA},
                **{"output_dir": "sd-model-finetuned-lora", "validation_epochs": 1},
            },
            lora=True,
            sampling=(30, 7.5),
        ),
        Script(
            "train_text_to_image_sdxl.py",
            "sdxl",
            {
                **{**COMMON, **CAPTIONED, **UNET, **ONE_PROMPT, **XL, "output_dir": "sdxl-model-finetuned"},
                **{"validation_epochs": 1, "proportion_empty_prompts": 0.0, "use_ema": ON},
                **{"timestep_bias_strategy": "none", "timestep_bias_multiplier": 1.0, "timestep_bias_begin": 0},
                **{"timestep_bias_end": 1000, "timestep_bias_portion": 0.25},
            },
            sampling=(25, 5.0),
        ),
        Script(
            "train_text_to_image_lora_sdxl.py",
            "sdxl",
            {
                **{**COMMON, **CAPTIONED, **UNET, **ONE_PROMPT, **XL, **LORA, "output_dir": "sd-model-finetuned-lora"},
                **{"validation_epochs": 1, "train_text_encoder": ON, "debug_loss": ON},
            },
            lora=True,
            sampling=(25, 5.0),
        ),
        Script(
            "train_dreambooth.py",
            "sd15",
            {
                **{**COMMON, **UNET, **DREAMBOOTH, **OF_TOKENIZERS, "output_dir": "dreambooth-model"},
                **{"learning_rate": 5e-6, "validation_steps": 100, "set_grads_to_none": ON, "offset_noise": ON},
                **{"skip_save_text_encoder": ON, "validation_scheduler": "DPMSolverMultistepScheduler"},
            },
        ),
        Script(
            "train_dreambooth_lora.py",
            "sd15",
            {
                **{**COMMON, **UNET, **DREAMBOOTH, **OF_TOKENIZERS, **LORA, "output_dir": "lora-dreambooth-model"},
                **{"learning_rate": 5e-4, "validation_epochs": 50},
            },
            lora=True,
        ),
        Script(
            "train_dreambooth_lora_sdxl.py",
            "sdxl",
            {
                **{**COMMON, **UNET, **DREAMBOOTH_OF_HUB, **XL, **NEW_LORA, "output_dir": "lora-dreambooth-model"},
                **{"use_dora": ON, "output_kohya_format": ON, "do_edm_style_training": ON},
            },
            lora=True,
            sampling=(25, 5.0),
        ),
        Script(
            "train_dreambooth_lora_sd3.py",
            "sd35",
            {
                **{**COMMON, **DREAMBOOTH_OF_HUB, **FLOW, **NEW_LORA, "output_dir": "sd3-dreambooth-lora"},
                **{"weighting_scheme": "logit_normal", "max_sequence_length": 77, "precondition_outputs": 1},
                **{"lora_layers": str, "lora_blocks": str},
            },
            lora=True,
            sampling=(28, 7.0),
        ),
        Script(
            "train_dreambooth_lora_flux.py",
            "flux1",
            {
                **{**COMMON, **DREAMBOOTH_OF_HUB, **FLOW, **NEW_LORA, "output_dir": "flux-dreambooth-lora"},
                **{
                    "lora_alpha": 4,
                    "guidance_scale": 3.5,
                    "max_sequence_length": 512,
                    "lora_layers": str,
                    "cache_latents": ON,
                },
            },
            lora=True,
            sampling=(28, 3.5),
        ),
    )
}
