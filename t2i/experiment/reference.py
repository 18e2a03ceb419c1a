"""What `validation.reference` names: a data set, or prompts of which the base draws images."""

from pathlib import Path

from omegaconf import DictConfig

from t2i.config.reference import reference_dataset
from t2i.evaluation.prompt_list import SUFFIXES, read_prompts


def check_reference(cfg: DictConfig) -> None:
    """Refuse a reference that can't be read, before anything is drawn."""
    if names_prompts(cfg):
        reference_prompts(cfg)
    else:
        reference_dataset(cfg)


def names_prompts(cfg: DictConfig) -> bool:
    """Whether `validation.reference` is a file of prompts, of which the base draws the images."""
    name = cfg.validation.reference
    return name is not None and Path(name).suffix.lower() in SUFFIXES


def reference_prompts(cfg: DictConfig) -> list[str]:
    return read_prompts(cfg.validation.reference, count=cfg.validation.reference_items, setting="validation.reference")
