"""Composes the jobs of a sweep: those that differ only in plain values are composed once, and get their values.

Hydra composes each job from all files anew, twice: to check it, and to launch it. That is most of what a sweep of many
jobs would cost.
"""

import copy
from collections.abc import Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

PLAIN = (bool, int, float, str, type(None))


def compose_quickly(context: HydraContext) -> None:
    """From now on, compose a sweep's jobs as `Compositions` does. Hydra has no public hook for this."""
    loader: Any = context.config_loader
    if isinstance(loader, ConfigLoaderImpl) and "load_sweep_config" not in vars(loader):
        loader.load_sweep_config = Compositions(loader).load_sweep_config


class Compositions:
    """The configurations of jobs, equal to those that Hydra's loader composes."""

    def __init__(self, loader: ConfigLoaderImpl):
        self.compose, self.parser = loader.load_sweep_config, OverridesParser.create()
        self.templates: dict[tuple, DictConfig] = {}  # by what their overrides do, but for plain values

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """A job's configuration; see Hydra's method of this name."""
        overrides = self.parser.parse_overrides(sweep_overrides)
        groups = master_config.hydra.runtime.choices
        plain = [override for override in overrides if _is_plain(override, groups)]
        keys = {id(override): override.key_or_group for override in plain}
        shape = (id(master_config), *(keys.get(id(override), override.input_line) for override in overrides))
        if shape not in self.templates:
            self.templates[shape] = self.compose(master_config, sweep_overrides)
        config = copy.deepcopy(self.templates[shape])
        ConfigLoaderImpl._apply_overrides_to_config(plain, config)
        _name(config, [override for override in overrides if not override.is_hydra_override()])
        OmegaConf.copy_cache(from_config=master_config, to_config=config)
        return config


def _is_plain(override: Override, groups: Any) -> bool:
    """Whether an override sets one value, and has no other effect."""
    key = override.key_or_group
    if override.package is not None or "/" in key or key in groups or override.is_hydra_override():
        return False
    changes = not (override.is_add() or override.is_force_add() or override.is_delete() or override.is_sweep_override())
    return changes and isinstance(value := override.value(), PLAIN) and "${" not in str(value)


def _name(config: DictConfig, overrides: Sequence[Override]) -> None:
    """Set what Hydra's settings hold of the job's overrides."""
    job = config.hydra.job
    config.hydra.overrides.task = [override.input_line for override in overrides]
    job.override_dirname = get_overrides_dirname(
        overrides=list(overrides),
        kv_sep=job.config.override_dirname.kv_sep,
        item_sep=job.config.override_dirname.item_sep,
        exclude_keys=job.config.override_dirname.exclude_keys,
    )
