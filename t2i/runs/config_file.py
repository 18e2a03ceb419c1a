"""A run's config.yaml: its configuration, resolved."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from t2i.config.moved_targets import with_moved_targets
from t2i.runs.files import atomic_write

NAME = "config.yaml"


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of the run in `folder`, with its `_target_`s where they are in this version."""
    return with_moved_targets(OmegaConf.to_container(OmegaConf.load(folder / NAME)))


def write_config(folder: Path, config: dict[str, Any]) -> None:
    atomic_write(folder / NAME, OmegaConf.to_yaml(OmegaConf.create(config)))
