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
MOST_TEMPLATES = 50  # held in memory, a megabyte each


class Compositions:
    """The configurations of jobs, equal to those that Hydra's loader composes."""

    def __init__(self, context: HydraContext):
        self.loader: Any = context.config_loader
        self.compose, self.parser = self.loader.load_sweep_config, OverridesParser.create()
        self.templates: dict[tuple, DictConfig] = {}  # by what their overrides do, but for plain values

    def check_quickly(self) -> None:
        """Until `compose_fully`, Hydra's check of each job composes only what no other job was composed of.

        Hydra has no public hook for this. What its loader returns meanwhile is of another job.
        """
        self.loader.load_sweep_config = self._template

    def compose_fully(self) -> None:
        """Give Hydra's loader its own method again, which other launchers call."""
        vars(self.loader).pop("load_sweep_config", None)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """A job's configuration; see the method of Hydra's loader of this name."""
        overrides = self.parser.parse_overrides(sweep_overrides)
        config = copy.deepcopy(self._template(master_config, sweep_overrides, overrides))
        plain = [override for override in overrides if _is_plain(override, master_config.hydra.runtime.choices)]
        ConfigLoaderImpl._apply_overrides_to_config(plain, config)
        _name(config, [override for override in overrides if not override.is_hydra_override()])
        OmegaConf.copy_cache(from_config=master_config, to_config=config)
        return config

    def _template(
        self, master_config: DictConfig, sweep_overrides: list[str], parsed: list[Override] | None = None
    ) -> DictConfig:
        """The configuration of a job that differs from this one in plain values only."""
        overrides = self.parser.parse_overrides(sweep_overrides) if parsed is None else parsed
        groups = master_config.hydra.runtime.choices
        shape = tuple(each.key_or_group if _is_plain(each, groups) else each.input_line for each in overrides)
        if shape not in self.templates:
            if len(self.templates) == MOST_TEMPLATES:
                self.templates.clear()
            self.templates[shape] = self.compose(master_config, sweep_overrides)
        return self.templates[shape]


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
