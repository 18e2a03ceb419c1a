"""Folders that hold the settings of the published pipelines, without weights.

The sizes are those of the published files, written down from memory and checked by their numbers of parameters
(`tests/models/test_full_sizes.py`). Tokenizers, whose vocabularies don't matter here, and schedulers are those of the
small pipelines.
"""

import json
from pathlib import Path
from typing import Any

import diffusers
import transformers

from helpers import families, layouts

FIXTURES = Path(__file__).parent.parent / "fixtures"
DENOISERS = json.loads((FIXTURES / "denoisers.json").read_text())  # of each family, by name
ENCODERS = json.loads((FIXTURES / "encoders.json").read_text())
CLIP_LENGTH = 77
PARTS = {  # of each family, by the names of the subfolders
    "sd15": {"vae": "KL of 4 channels", "text_encoder": "CLIP ViT-L"},
    "sd21": {"vae": "KL of 4 channels", "text_encoder": "OpenCLIP ViT-H"},
    "sdxl": {"vae": "KL of 4 channels", "text_encoder": "CLIP ViT-L", "text_encoder_2": "OpenCLIP ViT-bigG"},
    "sd35": {
        "vae": "KL of 16 channels",
        "text_encoder": "CLIP ViT-L",
        "text_encoder_2": "OpenCLIP ViT-bigG",
        "text_encoder_3": "T5-XXL",
    },
    "sana": {"vae": "DC-AE f32c32", "text_encoder": "Gemma 2 2B"},
    "pixart": {"vae": "KL of 4 channels", "text_encoder": "T5-XXL"},
    "flux1": {"vae": "KL of 16 channels", "text_encoder": "CLIP ViT-L", "text_encoder_2": "T5-XXL"},
    "zimage": {"vae": "KL of 16 channels", "text_encoder": "Qwen3 4B"},
    "qwen_image": {"vae": "KL of Qwen-Image", "text_encoder": "Qwen2.5-VL 7B"},
    "flux2": {"vae": "KL of FLUX.2", "text_encoder": "Qwen3 4B"},
}


def save(family: str, name: str, folder: Path) -> Path:
    """Write the settings of a pipeline, whose denoiser has this name in DENOISERS."""
    (layouts if family in layouts.STOCK else families).save(family, folder)
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    denoiser = DENOISERS[family][name]
    part = "unet" if denoiser["class"] == "UNet2DConditionModel" else "transformer"
    _write(folder / part, denoiser["class"], denoiser["config"])
    index = json.loads((folder / "model_index.json").read_text())
    for part, encoder in PARTS[family].items():
        _write(folder / part, index[part][1], ENCODERS[encoder]["config"])
    for file in folder.glob("tokenizer*/tokenizer_config.json"):
        settings = json.loads(file.read_text())
        if settings.get("tokenizer_class", "").startswith("CLIP"):
            file.write_text(json.dumps(settings | {"model_max_length": CLIP_LENGTH}))
    return folder


def _write(folder: Path, kind: str, config: dict[str, Any]) -> None:
    if hasattr(diffusers, kind):
        (folder / "config.json").write_text(json.dumps({"_class_name": kind, **config}))
    else:
        getattr(transformers, kind).config_class(**config).save_pretrained(folder)
