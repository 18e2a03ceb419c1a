"""What a sweep varies, and in which folder each of its jobs works. Imports little, as Hydra loads it at start-up."""

import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from t2i.config import ConfigError
from t2i.config.keys import belongs, flat
from t2i.config.moved_targets import set_as_then, with_moved_targets
from t2i.config.resolvers import refusal
from t2i.runs.changes import called, changes
from t2i.runs.files import atomic_write, check_fields, read_json
from t2i.runs.folder import INFO, begun_with, read_info
from t2i.runs.links import refuse_links_out
from t2i.runs.text import one_line

LONGEST_NAME = 100  # characters of a folder's name; file systems take 255 bytes
MANIFEST = "sweep.json"
FIELDS = ("varied", "choices", "config")  # of sweep.json
REMEDY = (
    "restore the file from a copy, delete it if this is the command that began the sweep, or use another sweep=NAME"
)
EXTRAS = {  # package -> extra of t2i that installs it
    "hydra_plugins.hydra_submitit_launcher": "submitit",
    "hydra_plugins.hydra_joblib_launcher": "joblib",
    "hydra_plugins.hydra_optuna_sweeper": "optuna",
    "ray": "ray",
}
OF_RAY = "hydra_plugins.t2i_launcher.RayLauncher"


class Guard(Callback):
    """Before Hydra creates or writes anything: refuses what can't work, and writes sweep.json for a sweep."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        with _exits():
            if (folder := _output_folder(config)) is not None:
                root = _belongs_to(folder)
                refuse_links_out(root, folder, root / "wandb")

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        with _exits():
            refuse_several_ranks(config)
            refuse_missing_plugins(config)
            folder = Path(config.hydra.sweep.dir)
            refuse_links_out(folder, folder)
            write_manifest(folder, config)


@contextmanager
def _exits() -> Generator[None]:
    """End the process on any error: Hydra would turn it into a warning, and go on unguarded."""
    try:
        yield
    except Exception as error:
        print(f"t2i: {_explain(error)}", file=sys.stderr)
        sys.exit(2)


def _output_folder(config: DictConfig) -> Path | None:
    """The folder in which Hydra will begin a single run; None if Hydra can't tell, either, and will say why."""
    hydra_config = HydraConfig.instance()
    before, hydra_config.cfg = hydra_config.cfg, cast("Any", config)  # which ${hydra:...} refers to
    try:
        return Path(config.hydra.run.dir)
    except OmegaConfBaseException:
        return None
    finally:
        hydra_config.cfg = before


def _belongs_to(folder: Path) -> Path:
    """The sweep of a job's folder, which may be a stranger's as a whole; otherwise the folder itself."""
    return folder.parent if (folder.parent / MANIFEST).is_file() else folder


def _explain(error: Exception) -> str:
    if (reason := refusal(error)) is not None:
        return reason
    if isinstance(error, (ConfigError, OSError)):
        return one_line(error)
    return f"the folder can't be checked before the run begins ({type(error).__name__}: {one_line(error)})"


def refuse_several_ranks(config: DictConfig) -> None:
    """Refuse a sweep inside `accelerate launch` or `srun`, where each process would run all of it."""
    if (ranks := int(os.environ.get("WORLD_SIZE", 1))) > 1:
        overrides = " ".join(config.hydra.overrides.task)
        if os.environ.get("SLURM_STEP_NUM_TASKS") == str(ranks):
            raise ConfigError(
                f"-m under srun would run the whole sweep in each of the {ranks} tasks; type it once, and it submits "
                f"its jobs: t2i train -m {overrides} hydra/launcher=slurm hydra.launcher.tasks_per_node={ranks}"
            )
        raise ConfigError(
            f"-m under accelerate launch would run the whole sweep in each of the {ranks} processes; let the sweep "
            f"launch them: python -m t2i.train -m {overrides} "
            f"'hydra.launcher.command=\"accelerate launch --num_processes {ranks} -m t2i.train\"'"
        )


def refuse_missing_plugins(config: DictConfig) -> None:
    """Refuse a launcher or sweeper whose package is not installed."""
    for group in ("launcher", "sweeper"):
        target = config.hydra[group]._target_
        package = "ray" if target == OF_RAY else ".".join(target.split(".")[:2])
        if target.startswith("hydra_plugins.") and find_spec(package) is None:
            option, extra = config.hydra.runtime.choices[f"hydra/{group}"], EXTRAS.get(package, "")
            raise ConfigError(f"hydra/{group}={option}: {package} is missing; pip install 't2i[{extra}]'")


def write_manifest(folder: Path, config: DictConfig) -> None:
    """Write to sweep.json what the sweep varies, and its other settings.

    An existing sweep may grow by more values and more varied settings; a change of any other setting is refused.
    """
    settings, before = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"]), _read(folder)
    choices = {group: option for group, option in config.hydra.runtime.choices.items() if "hydra" not in group}
    set_as_then(settings, before.get("config", {}), config.hydra.overrides.task, choices)
    # Unresolved, so that a value that follows from another may change with it. A sweep may have begun with the value.
    resolved = flat(OmegaConf.to_container(settings, resolve=True))
    settings = flat(OmegaConf.to_container(settings))
    settings |= {key: now for key, now in before.get("config", {}).items() if resolved.get(key) == now}
    varied = dict.fromkeys(_varied_keys(config))  # key -> its value before the sweep began to vary it, or None
    if before:
        known = flat(before["config"]) | before["choices"]
        varied = before["varied"] | {key: _canonical(known.get(key)) for key in varied if key not in before["varied"]}
        differ = changes(before["config"], settings)
        if changed := {key: change for key, change in differ.items() if not belongs(key, varied)}:
            raise ConfigError(
                f"{folder} was begun with another configuration ({', '.join(changed.values())}); use another sweep=NAME"
                f"{_or_fork(folder, changed, config.hydra.overrides.task)}"
            )
        settings, choices = before["config"], before["choices"]
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {"varied": varied, "choices": choices, "config": settings}
    atomic_write(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def _or_fork(folder: Path, changed: Iterable[str], overrides: Iterable[str]) -> str:
    """How to go on from the runs of a sweep with the settings that were typed; "" if it has no runs."""
    runs = [called(file.parent) for file in sorted(folder.glob(f"*/{INFO}"))]
    typed = [text for text in overrides if any(belongs(key, [text.partition("=")[0]]) for key in changed)]
    if not runs or not typed:
        return ""
    command = ["t2i", "train", "-m", f"from={','.join(runs)}", *typed, f"sweep={folder.name}-2"]
    return f", or, to go on from its runs with these settings, type: {shlex.join(command)}"


def as_begun(
    config: DictConfig, folder: Path, overrides: list[str], choices: Mapping[str, str | None]
) -> dict[str, tuple[Any, Any]]:
    """Give settings that nobody typed the values with which the run in `folder`, or its sweep, began.

    See set_as_then. An override is left alone; whether the run may go on with it is decided by comparing
    configurations.
    """
    begun = begun_with(folder) or _read(folder.parent).get("config", {})
    return set_as_then(config, begun, overrides, choices)


def job_folder(sweep_dir: str, overrides: list[str]) -> str:
    """The name of a job's folder: its values of the varied settings, in characters that need no quotes.

    A setting that the sweep began to vary later is left out where the job has the value of the earlier jobs.
    """
    given = {}
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        given[key] = value
    varied = _read(Path(sweep_dir)).get("varied", dict.fromkeys(key for key in given if key not in ("sweep", "run")))
    values = {key: _canonical(given[key]) for key in varied if key in given}
    values = {key: value for key, value in values.items() if value != varied[key]}
    parts = [f"{key}-{value.rstrip('/').rpartition('/')[2]}" for key, value in values.items()]
    plain = "_".join(parts)
    name = re.sub(r"[^\w.+-]+", "-", plain) or "job"
    if len(name) > LONGEST_NAME or any("/" in value for value in values.values()):
        return _hashed(name, values)
    if name != plain and values and not _is_of(Path(sweep_dir) / name, values):  # values that differ may look alike
        return _hashed(name, values)
    return name


def _hashed(name: str, values: dict[str, str]) -> str:
    return f"{name[:LONGEST_NAME]}-{hashlib.sha256(repr(values).encode()).hexdigest()[:8]}"


def _is_of(folder: Path, values: dict[str, str]) -> bool:
    """Whether a job with these values works in a folder: sweeps that began before have no hash in such names."""
    if not (folder / INFO).is_file():
        return False
    given = (override.lstrip("+~").partition("=") for override in read_info(folder).get("overrides", ()))
    own = {key: _canonical(value) for key, _, value in given}
    return all(own.get(key) == value for key, value in values.items())


def _varied_keys(config: DictConfig) -> list[str]:
    """The keys with several values on the command line or in the sweeper's search space."""
    given = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    overrides = OverridesParser.create().parse_overrides([*given, *config.hydra.overrides.task])
    return list(dict.fromkeys(override.key_or_group for override in overrides if override.is_sweep_override()))


def _read(folder: Path) -> dict[str, Any]:
    """The content of sweep.json, {} if there is none. Raises ConfigError if it is damaged."""
    file = folder / MANIFEST
    if not file.exists():
        return {}
    manifest = read_json(file, REMEDY)
    check_fields(manifest, dict.fromkeys(FIELDS, dict), file, REMEDY)
    if missing := [name for name in FIELDS if name not in manifest]:
        raise ConfigError(f"{file} lacks {', '.join(missing)}; {REMEDY}")
    return with_moved_targets(manifest)


def _canonical(value: Any) -> str:
    """A value as it appears in a name, however it was typed: 1e-4 as 0.0001, 5.0 as 5."""
    if isinstance(value, bool):
        return str(value).lower()
    try:
        return f"{float(value):.12g}"
    except (TypeError, ValueError):
        return str(value)
