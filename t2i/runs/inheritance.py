"""A run that begins with another has that run's settings, but for those typed: its command line is put before them."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from t2i.config import ConfigError
from t2i.config.keys import belongs, flat, key_of, set_by
from t2i.config.moved_targets import ADDED
from t2i.runs.changes import FREE_KEYS
from t2i.runs.config_file import read_config
from t2i.runs.folder import INFO, has_results, read_info
from t2i.runs.parentage import find_run, split

FROM = re.compile(r"\+?from(?:\.run)?=(.*)", re.DOTALL)
# What concerns the parent alone, and permissions, which count only where they are typed.
NOT_INHERITED = (
    *("run", "sweep", "from", "stop_at", "max_hours", "hub", "hydra"),
    *("allowed_targets", "dataset.follow_links"),
)


def with_parents(arguments: Sequence[str]) -> list[str]:
    """A command line with `from=RUN` as from.run=RUN, behind the overrides of RUN that nothing typed replaces.

    Of several runs (from=a,b in a sweep) these are the overrides that all of them have. The overrides may be a
    stranger's, so those of Hydra, and those that allow something, are left out.
    """
    places = [i for i, argument in enumerate(arguments) if FROM.fullmatch(argument)]
    if not places:
        return list(arguments)
    place, others = places[-1], [argument for i, argument in enumerate(arguments) if i not in places]
    found = FROM.fullmatch(arguments[place])
    assert found is not None
    override = f"from.run={found[1]}"
    runs = [run for text in values(override) if (run := _settings_of(text, others)) is not None]
    shared = [text for text in overrides_of(runs[0]) if all(text in overrides_of(run) for run in runs)] if runs else []
    # What is handed down already (to a job, by the command of its sweep) replaces nothing.
    typed = [key for argument in others if argument not in shared and (key := key_of(argument))]
    inherited = [text for text in shared if text not in others and not belongs(key_of(text), typed)]
    before = [argument for i, argument in enumerate(arguments[:place]) if i not in places]
    return [*before, *inherited, override, *arguments[place + 1 :]]


def values(override: str) -> list[str]:
    """The runs that from.run=... names: one, or several in a sweep."""
    try:
        parsed = OverridesParser.create().parse_override(override)
        chosen = parsed.sweep_iterator() if parsed.is_sweep_override() else [parsed.value()]
        return [str(getattr(value, "text", value)) for value in chosen if value is not None]
    except HydraException:
        return []  # Hydra will say what is wrong with it


def overrides_of(run: Path) -> list[str]:
    """What a run hands down of its command line."""
    texts = read_info(run).get("overrides", []) if (run / INFO).is_file() else []
    kept = [text for text in texts if not any(belongs(key, NOT_INHERITED) for key in set_by(text))]
    for text in kept:
        if _parsed(text) is None:
            raise ConfigError(f"{run / INFO}: {text!a} among its overrides is none; begin with another run")
    return kept


def _settings_of(asked: str, others: Sequence[str]) -> Path | None:
    """The run whose settings count: the parent, or without it the run that had them from it, of the same name."""
    if (parent := find_run(split(asked)[0])) is not None:
        return parent
    names = [argument.partition("=")[2] for argument in others if argument.startswith("run=")]
    own = Path("multirun") / names[-1] if names else None
    return own if own is not None and (own / INFO).is_file() and has_results(own) else None


def _parsed(text: str) -> Override | None:
    if not key_of(text):
        return None
    try:
        parsed = OverridesParser.create().parse_override(text)
    except HydraException:
        return None
    return None if parsed.is_sweep_override() else parsed


def as_parent(cfg: DictConfig, compose: Callable[[list[str]], dict[str, Any]]) -> None:
    """Give settings that nobody typed the values that the parent has, where its command line gives others today.

    t2i, or a file that an option comes from, may have changed since. compose: overrides -> flat configuration.
    """
    asked = cfg["from"].run
    run = None if asked is None else find_run(split(str(asked))[0])
    if run is None:
        return
    before, today = flat(read_config(run)), compose(overrides_of(run))
    now = flat(OmegaConf.to_container(cfg))
    before = {key: value for key, value in ADDED.items() if key in now} | before
    for key, value in before.items():
        changed = key in today and today[key] != value and now.get(key, ...) == today[key]
        if changed and not belongs(key, (*FREE_KEYS, "from")):
            OmegaConf.update(cfg, key, value)
