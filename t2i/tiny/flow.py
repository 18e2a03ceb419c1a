"""Put the pipeline of model=tiny_flow together: `python -m t2i.tiny.flow`.

The autoencoder and text encoder are those of model=tiny; the transformer has the architecture of Stable Diffusion 3,
and gets its weights from `t2i train experiment=tiny_flow`.
"""

import os
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPModel, CLIPTextModelWithProjection, CLIPTokenizer

from t2i.tiny.clip import WIDTH

HERE = Path(__file__).parent
FOLDER = HERE / "flow"


def text_encoder() -> CLIPTextModelWithProjection:
    """The text half of the judge, with the projection that the text encoder of model=tiny lacks."""
    clip = CLIPModel.from_pretrained(HERE / "judge", dtype=torch.float16)
    encoder = CLIPTextModelWithProjection(clip.text_model.config).half()
    weights = clip.state_dict()
    encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})
    return encoder


def transformer() -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=16,
        pos_embed_max_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=6,
        num_attention_heads=3,
        attention_head_dim=64,
        caption_projection_dim=3 * 64,
        joint_attention_dim=2 * WIDTH,  # of two text encoders side by side
        pooled_projection_dim=2 * WIDTH,
        qk_norm="rms_norm",
    )


def main() -> None:
    encoder = text_encoder()
    tokenizer = CLIPTokenizer.from_pretrained(HERE / "pipeline" / "tokenizer")
    vae: Any = AutoencoderKL.from_pretrained(HERE / "pipeline" / "vae", dtype=torch.float16)
    vae.register_to_config(shift_factor=0.0, _name_or_path="tiny")  # the pipeline adds the shift
    kind: Any = StableDiffusion3Pipeline
    pipeline = kind(
        transformer=transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipeline.save_pretrained(FOLDER)
    (FOLDER / "transformer" / "diffusion_pytorch_model.safetensors").unlink()  # fresh weights are drawn from the seed
    share(FOLDER / "vae" / "diffusion_pytorch_model.safetensors", HERE / "pipeline" / "vae")
    share(FOLDER / "text_encoder_2" / "model.safetensors", FOLDER / "text_encoder")
    for part in ("tokenizer", "tokenizer_2"):
        share(FOLDER / part / "tokenizer.json", HERE / "pipeline" / "tokenizer")


def share(file: Path, folder: Path) -> None:
    """Replace the file by a link to the one of the same name, and the same content, in another folder."""
    original = folder / file.name
    if file.read_bytes() != original.read_bytes():
        raise SystemExit(f"{file} differs from {original}")
    file.unlink()
    file.symlink_to(os.path.relpath(original, file.parent))


if __name__ == "__main__":
    main()
