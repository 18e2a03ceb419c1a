"""Draws with an installation of Diffusers of 2025 and Transformers 4, run by that installation's Python.

`python earlier_tools.py JOBS.json`: a list of [pipeline class, base, {"lora" or "single_file": path}, image to write].
"""

import json
import sys
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers


def draw(kind, base, given, image):
    pipelines = getattr(diffusers, kind)
    if "single_file" in given:
        settings = {"config": base, "local_files_only": True}
        pipeline = pipelines.from_single_file(given["single_file"], **settings)
        reference = pipelines.from_pretrained(base)
        for name, part in reference.components.items():
            if isinstance(part, torch.nn.Module):
                weights, expected = getattr(pipeline, name).state_dict(), part.state_dict()
                assert weights.keys() == expected.keys(), name
        pipeline.scheduler = reference.scheduler
    else:
        pipeline = pipelines.from_pretrained(base)
    if "lora" in given:
        file = Path(given["lora"])
        pipeline.load_lora_weights(file.parent, weight_name=file.name)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.safety_checker = None
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    images = pipeline("red apple", latents=noise, num_inference_steps=3, output_type="np").images
    np.save(image, images)


if __name__ == "__main__":
    print("diffusers", diffusers.__version__, "transformers", transformers.__version__)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        draw(*job)
