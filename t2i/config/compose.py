"""Configurations outside of Hydra's own program: composed from overrides, as `t2i train` takes them."""

from collections.abc import Container
from itertools import product
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from t2i.config import CONF
from t2i.config.checks import check_permissions
from t2i.config.resolvers import restrict


def compose(overrides: list[str], **options: Any) -> DictConfig:
    """The configuration that `t2i train OVERRIDES` sees. options: of hydra.compose."""
    restrict()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("config", overrides=overrides, **options)
    check_permissions(cfg, overrides)
    return cfg


def compose_defaults(overrides: list[str]) -> DictConfig:
    """The configuration with the options that `overrides` choose, but with the default of every setting."""
    return compose(chosen_options(overrides, groups()))


def chosen_options(overrides: list[str], groups: Container[str]) -> list[str]:
    """The overrides that choose an option of a group, as loss=minsnr does."""
    return [override for override in overrides if override.partition("=")[0] in groups]


def groups() -> set[str]:
    """The groups of conf/, such as loss or hydra/launcher."""
    folders = {file.parent.relative_to(CONF).as_posix() for file in CONF.glob("*/**/*.yaml")}
    return folders - {"wandb", "dataset/shared"}


def expand(arguments: list[str]) -> list[list[tuple[Override, str]]]:
    """The jobs of a sweep: each override, and its text with one of its values."""
    overrides = OverridesParser.create().parse_overrides(arguments)
    texts = map(_texts, overrides, arguments)
    return [list(zip(overrides, job, strict=True)) for job in product(*texts)]


def _texts(override: Override, argument: str) -> list[str]:
    if not override.is_sweep_override():
        return [argument]
    key = argument.partition("=")[0]
    return [f"{key}={value}" for value in override.sweep_string_iterator()]
