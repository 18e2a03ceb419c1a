"""A run's config.yaml: its configuration, resolved."""

from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import AliasEvent, YAMLError

from t2i.config import ConfigError
from t2i.config.keys import flat
from t2i.config.moved_targets import with_moved_targets
from t2i.config.values import check_values
from t2i.runs.files import atomic_write, refuse_deep
from t2i.runs.links import read_regular
from t2i.runs.text import one_line

NAME = "config.yaml"
LARGEST = 1_000_000  # bytes; t2i writes a few thousand, and YAML is parsed slowly
REMEDY = "restore the file from a copy, or use another run"
# PyYAML's constructors let the errors of int(), float() and indexing through.
DAMAGED = (
    *(OSError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError),
    *(YAMLError, OmegaConfBaseException, RecursionError),
)


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of the run in `folder`, with its `_target_`s where they are in this version.

    Raises ConfigError if the file is damaged, or holds interpolations: a run writes what they resolved to.
    """
    file = folder / NAME
    try:
        if "*" in (text := read_regular(file, LARGEST)) and _has_alias(text):
            raise ValueError("it holds an alias, which t2i never writes: a few of them can stand for gigabytes")
        config = OmegaConf.to_container(OmegaConf.load(file))
    except DAMAGED as error:
        raise ConfigError(f"{file} can't be read ({one_line(error)}); {REMEDY}") from error
    if not isinstance(config, dict) or not config:
        raise ConfigError(f"{file} does not hold a configuration; {REMEDY}")
    refuse_deep(config, file, REMEDY)
    try:
        check_values(config)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    if interpolated := [key for key, value in flat(config).items() if "${" in str(value)]:
        raise ConfigError(f"{file}: {interpolated[0]} holds an interpolation, which t2i never writes; {REMEDY}")
    return with_moved_targets(config)


def _has_alias(text: str) -> bool:
    return any(isinstance(event, AliasEvent) for event in yaml.parse(text))


def write_config(folder: Path, config: dict[str, Any]) -> None:
    atomic_write(folder / NAME, OmegaConf.to_yaml(OmegaConf.create(config)))
