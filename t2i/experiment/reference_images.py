"""The images of `validation.reference`, which are drawn first where it names prompts."""

import json
from typing import Any

from accelerate import Accelerator
from omegaconf import DictConfig

from t2i.config.instantiate import build
from t2i.config.reference import load_reference, reference_dataset
from t2i.data.splits import Split
from t2i.experiment.drawn_images import Base
from t2i.experiment.reference import names_prompts, reference_prompts
from t2i.runs.files import replacing


def reference_images(cfg: DictConfig, accelerator: Accelerator) -> Split | None:
    """The captioned images to measure; None without a reference. The base draws them once, where prompts are given."""
    if names_prompts(cfg):
        return _drawn(cfg, accelerator)
    data: Any = load_reference(cfg)
    return None if data is None else data.validation


def _drawn(cfg: DictConfig, accelerator: Accelerator) -> Split:
    prompts, base = reference_prompts(cfg), Base(cfg, accelerator)
    folder = base.folder("reference_images", prompts=prompts)
    base.draw_missing(folder, [(prompt, 0) for prompt in prompts])
    if accelerator.is_main_process:
        lines = [{"file_name": f"{place:05d}.png", "text": prompt} for place, prompt in enumerate(prompts)]
        with replacing(folder / "metadata.jsonl") as file:
            file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    accelerator.wait_for_everyone()
    cfg = cfg.copy()
    cfg.validation.reference = str(folder)
    data_set = reference_dataset(cfg)
    assert data_set is not None
    data_set.dataset.validation_share = 0.0  # all of them are measured
    return build(data_set, "dataset").train
