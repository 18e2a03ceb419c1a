"""The data set of `validation.reference`: what the base could do before, to say what was forgotten."""

import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from t2i.config import ConfigError
from t2i.config.compose import composed
from t2i.config.instantiate import build, check_signature, resolve

SKIP = "dataset.on_error=skip"  # a remedy that the run's own data set would take


def reference_dataset(cfg: DictConfig) -> DictConfig | None:
    """The reference data set's configuration under `dataset`, with the resolution of the run's own; None without one.

    Raises ConfigError if there is no such option or folder, or if the option can't be used as it is.
    """
    if (name := cfg.validation.reference) is None:
        return None
    node = _option(name, cfg)
    if "follow_links" in node:  # a permission, which check_permissions knows where the run's own data set has it
        if node["follow_links"] and not cfg.dataset.get("follow_links"):
            raise ConfigError(
                f"validation.reference={name}: follow_links=true comes from a file; it counts on the command line "
                "only, as dataset.follow_links=true"
            )
        node["follow_links"] = bool(cfg.dataset.get("follow_links"))
    if "resolution" in node and "resolution" in cfg.dataset:
        node["resolution"] = cfg.dataset.resolution
    reference = OmegaConf.create({"dataset": node, "allowed_targets": cfg.allowed_targets})
    with _naming(name):
        check_signature(reference, "dataset")
    return reference


def load_reference(cfg: DictConfig) -> Any:
    """The reference data set; None without one. ConfigError if it holds no image out."""
    if (reference := reference_dataset(cfg)) is None:
        return None
    with _naming(cfg.validation.reference):
        data = build(reference, "dataset")
    if not len(data.validation):
        raise ConfigError(
            f"validation.reference={cfg.validation.reference} holds no image out: it has too few, or its "
            "validation_share is null; use a larger one, or an option of your own with a larger share (--config-dir)"
        )
    return data


def _option(name: str, cfg: DictConfig) -> dict[str, Any]:
    """The settings of an option of the group `dataset`, or of dataset=folder with this folder, resolved."""
    is_folder = Path(name).expanduser().is_dir()
    unknown = (
        f"validation.reference={name} is neither an option of dataset (t2i settings dataset) nor a folder, nor a file "
        "of prompts (.txt, .csv, .jsonl, .parquet)"
    )
    if not is_folder and not re.fullmatch(r"[\w-]+", name):
        raise ConfigError(unknown)
    try:
        overrides = ["dataset=folder" if is_folder else f"dataset={name}"]
        is_running = GlobalHydra.instance().is_initialized()  # then it knows the folders of --config-dir
        other = hydra.compose("config", overrides=overrides) if is_running else composed(overrides)
    except HydraException as error:
        raise ConfigError(unknown) from error
    other.cache_dir = cfg.cache_dir
    if is_folder:
        other.dataset.path = name
    if missing := OmegaConf.missing_keys(other.dataset):
        raise ConfigError(
            f"validation.reference={name}: {', '.join(sorted(missing))} must be given; write an option of your "
            "own with `defaults: [" + name + "]` (--config-dir), or name a folder of images"
        )
    return resolve(other)["dataset"]


@contextmanager
def _naming(name: str) -> Generator[None]:
    """Say of errors that they are of the reference, whose settings are called like those of the run's data set."""
    try:
        yield
    except ConfigError as error:
        remedy = "; for the reference, an option of your own sets them (--config-dir)" if SKIP in str(error) else ""
        raise ConfigError(f"validation.reference={name}: {error}{remedy}") from error
