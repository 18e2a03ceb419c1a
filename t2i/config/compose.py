"""Configurations outside of Hydra's own program: composed from overrides, as `t2i train` takes them."""

from collections.abc import Container, Sequence
from itertools import product
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from t2i.config import CONF, ConfigError
from t2i.config.checks import check_permissions
from t2i.config.config_files import guard_files
from t2i.config.resolvers import refusal, restrict
from t2i.config.typed import as_typed
from t2i.config.values import check_size, check_values

SEARCH_PATH = "hydra.searchpath"


def compose(overrides: list[str], **options: Any) -> DictConfig:
    """The configuration that `t2i train OVERRIDES` sees. options: of hydra.compose."""
    cfg = composed(overrides, **options)
    check_permissions(cfg, overrides)
    return cfg


def composed(overrides: list[str], **options: Any) -> DictConfig:
    """The same, whoever gave the permissions in it. Hydra raises HydraException, or KeyError for an absent variable."""
    restrict()
    guard_files()
    overrides = as_typed(overrides)
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = hydra.compose("config", overrides=overrides, **options)
            content = OmegaConf.to_container(OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]))
            check_values(content)
            check_size(content)
            return cfg
    except ConfigError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        if (reason := refusal(error)) is not None:
            raise ConfigError(reason) from error
        raise
    except RecursionError as error:
        raise ConfigError(
            "the settings can't be composed: an option includes itself in its defaults list, or too many "
            "interpolations (${...}) lead from one to the next"
        ) from error
    except (YAMLError, AttributeError, TypeError, ValueError) as error:  # what a file of an unexpected shape causes
        raise ConfigError(f"the settings can't be composed: {' '.join(str(error).split())}") from error


def compose_defaults(overrides: list[str]) -> DictConfig:
    """The configuration with the options that `overrides` choose, but with the default of every setting."""
    kept = [override for override in overrides if override.startswith(SEARCH_PATH)]
    return composed([*chosen_options(overrides, groups()), *kept])


def search_path(folders: Sequence[str]) -> str:
    """The override that makes Hydra find options in further folders, such as file:///home/me/my_conf."""
    quoted = ("'{}'".format(folder.replace("\\", "\\\\").replace("'", "\\'")) for folder in folders)
    return f"{SEARCH_PATH}=[{','.join(quoted)}]"


def chosen_options(overrides: list[str], groups: Container[str]) -> list[str]:
    """The overrides that choose an option of a group, as loss=minsnr does."""
    return [override for override in overrides if override.partition("=")[0] in groups]


def groups() -> set[str]:
    """The groups of conf/, such as loss or hydra/launcher."""
    folders = {file.parent.relative_to(CONF).as_posix() for file in CONF.glob("*/**/*.yaml")}
    return folders - {"wandb", "dataset/shared"}


def expand(arguments: list[str]) -> list[list[tuple[Override, str]]]:
    """The jobs of a sweep: each override, and its text with one of its values."""
    arguments = as_typed(["-m", *arguments])[1:]
    overrides = OverridesParser.create().parse_overrides(arguments)
    texts = map(_texts, overrides, arguments)
    return [list(zip(overrides, job, strict=True)) for job in product(*texts)]


def _texts(override: Override, argument: str) -> list[str]:
    if not override.is_sweep_override():
        return [argument]
    key = argument.partition("=")[0]
    value = override.value()
    if isinstance(value, Glob):
        if not (found := value.filter(_options(key))):
            raise ConfigError(f"{argument}: no option is called so; choose from {', '.join(_options(key))}")
        return [f"{key}={option}" for option in found]
    if override.is_interval_sweep():
        raise ConfigError(f"{argument}: an interval has no values of its own; write them out, as in {key}=1,2")
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def _options(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))
