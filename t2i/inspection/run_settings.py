"""The settings of one run: first those that are not the defaults."""

import re
from functools import cache
from typing import Any, NamedTuple

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from t2i.comparison.charts import shorten
from t2i.comparison.factors import NO_FACTORS, as_text
from t2i.comparison.results import Result
from t2i.config import CONF, ConfigError
from t2i.config.compose import composed, groups
from t2i.config.instantiate import resolve
from t2i.config.keys import belongs, flat

LONGEST_DEFAULT = 100  # characters
OF_THE_MACHINE = ("run", "sweep", "cache_dir")


class Setting(NamedTuple):
    """A setting, its value in the run, and its default; "" for a setting that today's version does not have."""

    key: str
    value: str
    default: str


def changed(run: Result) -> list[Setting]:
    """The options, then the settings, that are not the defaults; none if these can't be told.

    The default of a setting is that of the options that the run chose; an experiment counts as changed settings.
    """
    choices = {group: option for group, option in run.choices.items() if _is_option(group, option)}
    try:
        usual = _composed()[1]
        cfg, _ = _composed(*(f"{group}={option}" for group, option in choices.items()))
        defaults, unresolved = flat(resolve(cfg)), flat(OmegaConf.to_container(cfg))
        following = {key for key, value in unresolved.items() if "${" in str(value)}  # from other settings
    except (ConfigError, HydraException, OmegaConfBaseException, OSError):
        return []
    options = [
        Setting(group, str(option), as_text(usual.get(group)))
        for group, option in run.choices.items()
        if not group.startswith("hydra") and isinstance(option, str) and option != usual.get(group)
    ]
    typed = [text.lstrip("+~").partition("=")[0] for text in run.info.get("overrides", []) if isinstance(text, str)]
    settings = [
        Setting(key, as_text(value), shorten(as_text(defaults[key]), LONGEST_DEFAULT))
        for key, value in run.config.items()
        if key in defaults and value != defaults[key] and not belongs(key, OF_THE_MACHINE)
        if not key.endswith("._target_") and (key not in following or belongs(key, typed))
    ]
    return options + sorted(settings, key=lambda setting: belongs(setting.key, NO_FACTORS))


def _is_option(group: str, option: Any) -> bool:
    """Whether a choice is an option of t2i's own; run.json may be a stranger's. An experiment is left out."""
    plain = isinstance(option, str) and re.fullmatch(r"\w+", option) and group in groups()
    return bool(plain) and group != "experiment" and (CONF / group / f"{option}.yaml").is_file()


@cache
def _composed(*overrides: str) -> tuple[DictConfig, dict[str, Any]]:
    """The configuration of some overrides, and the option of each group."""
    cfg = composed(list(overrides), return_hydra_config=True)
    choices = dict(cfg.hydra.runtime.choices)
    return OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]), choices


def everything(run: Result) -> list[tuple[str, str]]:
    """All settings, as config.yaml has them."""
    return [(key, as_text(value)) for key, value in run.config.items()]
