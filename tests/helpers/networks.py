"""Small feature networks with fresh weights, in the layouts of the real ones; the tokenizer is that of `tiny`."""

import shutil
from pathlib import Path

import torch
from transformers import (
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from t2i.config.model_size import BUNDLED

WIDTH = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**WIDTH, "vocab_size": 2000, "bos_token_id": 1998, "eos_token_id": 1999, "pad_token_id": 1999}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def save(kind: str, folder: Path) -> Path:
    """Write a small clip, siglip, dino or dinov2 to `folder`."""
    torch.manual_seed(0)
    model, processor = {"clip": _clip, "siglip": _siglip, "dino": _dino, "dinov2": _dinov2}[kind]()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if kind in ("clip", "siglip"):
        for file in (BUNDLED["tiny"] / "tokenizer").iterdir():
            shutil.copy(file, folder)
    return folder


def _clip():
    text, vision = {**TEXT, "max_position_embeddings": 20}, {**WIDTH, "image_size": 32, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    return model, CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def _siglip():
    text, vision = {**TEXT, "max_position_embeddings": 16}, {**WIDTH, "image_size": 32, "patch_size": 8}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    return model, SiglipImageProcessorPil(size={"height": 32, "width": 32}, **HALF)


def _dino():
    model = ViTModel(ViTConfig(**WIDTH, image_size=32, patch_size=8), add_pooling_layer=False)
    return model, ViTImageProcessorPil(size={"height": 32, "width": 32})


def _dinov2():
    model = Dinov2Model(
        Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    )
    return model, BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28})
