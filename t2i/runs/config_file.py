"""A run's config.yaml: its configuration, resolved."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException
from yaml import AliasEvent, CollectionEndEvent, CollectionStartEvent, YAMLError

from t2i.config import ConfigError
from t2i.config.keys import flat
from t2i.config.moved_targets import with_moved_targets
from t2i.config.values import check_values
from t2i.runs.files import DEEPEST, atomic_write, unreadable
from t2i.runs.links import read_regular

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
        text = read_regular(file, LARGEST)
        _refuse_strange(text)
        _refuse_other_types(config := yaml.load(text, Loader=_loader()))
    except DAMAGED as error:
        raise unreadable(file, error, REMEDY) from error
    if not isinstance(config, dict) or not config:
        raise ConfigError(f"{file} does not hold a configuration; {REMEDY}")
    try:
        check_values(config)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    if interpolated := [key for key, value in flat(config).items() if "${" in str(value)]:
        raise ConfigError(f"{file}: {interpolated[0]} holds an interpolation, which t2i never writes; {REMEDY}")
    return with_moved_targets(config)


def _refuse_strange(text: str) -> None:
    """Raise ValueError for what t2i never writes, and what would take gigabytes, or more levels than a stack has."""
    depth = 0
    for event in yaml.parse(text, Loader=_loader()):
        if isinstance(event, AliasEvent):
            raise ValueError("it holds an alias, which t2i never writes: a few of them can stand for gigabytes")
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} levels deep")


def _refuse_other_types(node: Any) -> None:
    if isinstance(node, dict | list):
        for child in [*node, *node.values()] if isinstance(node, dict) else node:
            _refuse_other_types(child)
    elif not isinstance(node, str | int | float | None):
        raise ValueError(f"it holds a value of the type {type(node).__name__}, which t2i never writes")


@cache
def _loader() -> Any:
    """OmegaConf's rules for what is a number and what is text, on libyaml's parser: twenty times as fast as Python's.

    OmegaConf has no public loader.
    """
    rules = get_yaml_loader()
    if not yaml.__with_libyaml__:
        return rules

    class Loader(yaml.cyaml.CParser, rules):
        def __init__(self, stream: Any):
            yaml.cyaml.CParser.__init__(self, stream)
            yaml.constructor.SafeConstructor.__init__(self)
            yaml.resolver.Resolver.__init__(self)

    return Loader


def write_config(folder: Path, config: dict[str, Any]) -> None:
    atomic_write(folder / NAME, OmegaConf.to_yaml(OmegaConf.create(config)))
