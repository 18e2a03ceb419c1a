"""Sweeps: what is varied, what is held, and in which folder each job works. Light: Hydra imports it at start-up."""

import hashlib
import json
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from t2i.config import ConfigError
from t2i.config.keys import flat
from t2i.config.moved_targets import with_moved_targets
from t2i.runs.files import atomic_write
from t2i.runs.folder import changes

LONGEST_NAME = 100  # characters, of a folder; file systems end at 255 bytes
EXTRAS = {  # plugin -> extra of t2i that brings it
    "hydra_submitit_launcher": "submitit",
    "hydra_joblib_launcher": "joblib",
    "hydra_ray_launcher": "ray",
    "hydra_optuna_sweeper": "optuna",
}


class Guard(Callback):
    """Before a sweep's first job: refuse what can't work, and write down what the sweep varies in sweep.json."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        try:
            refuse_several_ranks(config)
            refuse_missing_plugins(config)
            begin(Path(config.hydra.sweep.dir), config)
        except ConfigError as error:  # Hydra would turn it into a warning
            print(f"t2i: {error}", file=sys.stderr)
            sys.exit(2)


def refuse_several_ranks(config: DictConfig) -> None:
    """Refuse a sweep inside `accelerate launch`, where each process would run all of it."""
    if (ranks := int(os.environ.get("WORLD_SIZE", 1))) > 1:
        overrides = " ".join(config.hydra.overrides.task)
        raise ConfigError(
            f"-m under accelerate launch would run the whole sweep in each of the {ranks} processes; let the sweep "
            f"launch them: python -m t2i.train -m {overrides} "
            f"'hydra.launcher.command=\"accelerate launch --num_processes {ranks} -m t2i.train\"'"
        )


def refuse_missing_plugins(config: DictConfig) -> None:
    """Refuse a launcher or sweeper whose package is not installed."""
    for group in ("launcher", "sweeper"):
        target = config.hydra[group]._target_
        plugin = ".".join(target.split(".")[:2])
        if target.startswith("hydra_plugins.") and find_spec(plugin) is None:
            option, extra = config.hydra.runtime.choices[f"hydra/{group}"], EXTRAS.get(plugin.split(".")[1], "")
            raise ConfigError(f"hydra/{group}={option}: the plugin is missing; pip install 't2i[{extra}]'")


def begin(folder: Path, config: DictConfig) -> None:
    """Write sweep.json, or compare with the one that is there.

    A sweep may grow: more values, and more settings that vary. What it does not vary must stay as it was.
    """
    base = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    base = flat(OmegaConf.to_container(base))  # unresolved: a value that follows from another need not be named
    choices = {group: option for group, option in config.hydra.runtime.choices.items() if "hydra" not in group}
    varied = dict.fromkeys(_varied_keys(config))
    if before := _read(folder):
        known = flat(before["config"]) | before["choices"]
        varied = before["varied"] | {key: _text(known.get(key)) for key in varied if key not in before["varied"]}
        differ = [
            change
            for key, change in changes(before["config"], base).items()
            if not any(key == name or key.startswith(f"{name}.") for name in varied)
        ]
        if differ:
            raise ConfigError(
                f"{folder} was begun with another configuration ({', '.join(differ)}); use another sweep=NAME"
            )
        base, choices = before["config"], before["choices"]
    folder.mkdir(parents=True, exist_ok=True)
    found = {"varied": varied, "choices": choices, "config": base}
    atomic_write(folder / "sweep.json", json.dumps(found, indent=2, ensure_ascii=False) + "\n")


def job_folder(sweep_dir: str, overrides: list[str]) -> str:
    """Name of a job: what it has of the sweep's varied settings, in letters that can be typed back.

    A setting that the sweep began to vary later is left out where it has the value of the jobs before.
    """
    given = dict(override.lstrip("+~").partition("=")[::2] for override in overrides)
    varied = _read(Path(sweep_dir)).get("varied", dict.fromkeys(key for key in given if key not in ("sweep", "run")))
    values = {key: _text(given[key]) for key in varied if key in given}
    values = {key: value for key, value in values.items() if value != varied[key]}
    parts = [f"{key}-{value.rstrip('/').rpartition('/')[2]}" for key, value in values.items()]
    name = re.sub(r"[^\w.+-]+", "-", "_".join(parts)) or "job"
    if len(name) > LONGEST_NAME or any("/" in value for value in values.values()):
        name = f"{name[:LONGEST_NAME]}-{hashlib.sha256(repr(values).encode()).hexdigest()[:8]}"
    return name


def _varied_keys(config: DictConfig) -> list[str]:
    """The keys with several values on the command line, or in the sweeper's search space."""
    given = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    overrides = OverridesParser.create().parse_overrides([*given, *config.hydra.overrides.task])
    return list(dict.fromkeys(each.key_or_group for each in overrides if each.is_sweep_override()))


def _read(folder: Path) -> dict[str, Any]:
    file = folder / "sweep.json"
    return with_moved_targets(json.loads(file.read_text())) if file.is_file() else {}


def _text(value: Any) -> str:
    """A value as it stands in a name: 1e-4 and 0.0001 alike, 5 and 5.0 alike."""
    if isinstance(value, bool):
        return str(value).lower()
    try:
        return f"{float(value):.12g}"
    except (TypeError, ValueError):
        return str(value)
