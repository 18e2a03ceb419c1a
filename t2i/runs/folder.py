"""The run folder: what a run leaves behind, and how the same command continues it."""

import hashlib
import json
import logging
import platform
import secrets
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from filelock import Timeout
from omegaconf import DictConfig, OmegaConf

from t2i.config import ConfigError
from t2i.config.keys import belongs, flat
from t2i.runs import config_file
from t2i.runs.changes import changes, free_keys, how_to_fork
from t2i.runs.config_file import read_config, write_config
from t2i.runs.files import LOCK, atomic_write, check_fields, lock, numbered, read_json
from t2i.runs.links import refuse_links_out
from t2i.runs.records import METRICS, count_damaged, headline, is_number, read_metrics, tidy

log = logging.getLogger(__name__)

INFO = "run.json"
FOLDERS = ("checkpoints", "validation", "samples", "averages", "model")
FILES = (INFO, config_file.NAME, METRICS, LOCK)
REMEDY = "delete this file, and the run continues from its newest checkpoint"
TYPES = {  # of the fields of run.json that t2i reads
    **dict.fromkeys(("state", "started", "ended", "error", "stopped", "config_hash", "process", "precision"), str),
    **dict.fromkeys(("choices", "battery", "final", "early_stop", "parent"), dict),
    **{
        "overrides": list,
        "base_adapters": list,
        "channels_last": bool,
        "paused_at": int,
        "samples_since": int,
        "tracker_id": (str, type(None)),
        "code_revision": (str, type(None)),
    },
}
PACKAGES = ("t2i", "torch", "diffusers", "transformers", "accelerate", "datasets", "numpy")


class RunExists(ConfigError):
    """The folder belongs to a run of another configuration."""


class Run:
    """One run folder. Only the main process writes; the other processes read the same files."""

    def __init__(self, folder: Path, config: DictConfig, writes: bool = True, overrides: Sequence[str] = ()):
        """overrides: the command line, for a message that says how to go on with other settings."""
        self.folder, self.writes, self.overrides = folder, writes, overrides
        self.config: dict[str, Any] = cast("dict[str, Any]", OmegaConf.to_container(config, resolve=True))
        self.info: dict[str, Any] = {}
        _refuse_wrong_kinds(folder)
        if (folder / INFO).is_file():
            self.info = read_info(folder)
            if self.has_results and (folder / config_file.NAME).is_file():
                before = read_config(folder)
                self._refuse_another_configuration(flat(before))
                if before.get("samples") != self.config.get("samples"):  # older samples show something else
                    self.info["samples_since"] = max(numbered(folder / "samples", "png"), default=-1)

    @property
    def has_results(self) -> bool:
        """Whether the folder holds results that another configuration would mix with its own."""
        return has_results(self.folder)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Within, no other process can work in this folder."""
        if not self.writes:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        refuse_links_out(self.folder, self.folder)
        try:
            with lock(self.folder, patience=1):
                tidy(self.folder)
                yield
        except Timeout as error:
            raise RunExists(
                f"{self.folder} is in use by another process; wait for it, or use another run=NAME"
            ) from error

    def refuse_changes(self, facts: dict[str, Any]) -> None:
        """Refuse to continue with different data, battery, precision or adapters in the base. Raises RunExists."""
        for key in ("base_adapters", "data_fingerprint", "battery", "train_battery", "reference_battery", "precision"):
            before, now = self.info.get(key, facts.get(key)), facts.get(key)
            if key == "base_adapters" and _contents(before) == _contents(now):  # wherever they lie
                continue
            if self.has_results and key in facts and before != now:
                raise RunExists(f"{self.folder} began with a different {key} ({before} → {now}); use another run=NAME")

    def _refuse_another_configuration(self, before: dict[str, Any]) -> None:
        now = flat(self.config)
        if differ := changes(before, now):
            typed = [text for text in self.overrides if text not in self.info.get("overrides", [])]
            name = "sweep=NAME" if self.config.get("sweep") else "run=NAME"
            raise RunExists(
                f"{self.folder} holds a run with a different configuration ({', '.join(differ.values())}); use another "
                f"{name} to begin anew, or, to go on from that run with these settings, type: "
                f"{how_to_fork(self.folder, typed, differ, now)}"
            )

    @property
    def finished(self) -> bool:
        return self.info.get("state") == "finished"

    @property
    def result(self) -> float:
        """The final val/loss of a finished run, or the headline in its place; NaN if validation was switched off."""
        return self.final.get(headline(self.final), float("nan"))

    @property
    def final(self) -> dict[str, float]:
        """The last value of every metric of a run that is finished or paused."""
        final = self.info.get("final")
        return final if isinstance(final, dict) else {}

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def _config_hash(self) -> str:
        settings = flat(self.config)
        counts = {key: value for key, value in settings.items() if not belongs(key, free_keys(settings))}
        return hashlib.sha256(json.dumps(counts, sort_keys=True).encode()).hexdigest()[:32]

    def begin(self, **fields: Any) -> None:
        """Write config.yaml and run.json; `started` of a continued run is kept."""
        for outdated in ("error", "ended", "stopped"):
            self.info.pop(outdated, None)
        if self.writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_config(self.folder, self.config)
        self.update(
            state="running",
            config_hash=self._config_hash(),
            code_revision=_revision(),
            packages={name: metadata.version(name) for name in PACKAGES},
            python=platform.python_version(),
            started=self.info.get("started") or _now(),
            process=secrets.token_hex(8),  # tells who waits for this process that it wrote the file; no clock does
            **fields,
        )

    def update(self, **fields: Any) -> None:
        """Set fields of run.json, atomically."""
        self.info |= fields
        if self.writes:
            atomic_write(self.folder / INFO, json.dumps(self.info, indent=2, ensure_ascii=False) + "\n")

    def end(self, state: str, **fields: Any) -> None:
        """state: finished, paused, failed or interrupted."""
        self.update(state=state, ended=_now(), **fields)

    @staticmethod
    def mark(folder: Path, **fields: Any) -> None:
        """Set fields of a folder's run.json from another process, such as the reason why the run's own process died.

        A finished run is left as it is.
        """
        file = folder / INFO
        info = read_info(folder) if file.is_file() else {}
        if info.get("state") == "finished":
            return
        atomic_write(file, json.dumps(info | fields | {"ended": _now()}, indent=2, ensure_ascii=False) + "\n")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append one line to metrics.jsonl."""
        if self.writes:
            with (self.folder / METRICS).open("a") as file:
                file.write(json.dumps({"step": step, **metrics}) + "\n")

    def rewind(self, step: int) -> None:
        """Drop the lines logged after `step`, which will be computed again, and lines that a crash has torn."""
        if self.writes and (self.folder / METRICS).is_file():
            if damaged := count_damaged(self.folder):
                log.warning("%s: %d damaged lines are dropped", self.folder / METRICS, damaged)
            kept = [text for text, line in read_metrics(self.folder).items() if line["step"] <= step]
            atomic_write(self.folder / METRICS, "".join(f"{text}\n" for text in kept))

    def metrics(self) -> list[dict[str, float]]:
        """The lines of metrics.jsonl."""
        return list(read_metrics(self.folder).values())

    def validated(self) -> dict[int, float]:
        """step -> val/loss, or the headline in its place, where it was measured."""
        return {int(line["step"]): line[name] for line in self.metrics() if (name := headline(line))}

    @property
    def samples_since(self) -> int:
        """The step up to which samples were drawn with other settings than now; -1 if none were."""
        return self.info.get("samples_since", -1)

    def latest(self) -> dict[str, float]:
        """The last value of every metric."""
        return {key: value for line in self.metrics() for key, value in line.items()}


def _contents(adapters: Any) -> list[Any]:
    """The content and the scale of each file of adapters in a base, from a run.json."""
    entries = [entry if isinstance(entry, dict) else {} for entry in adapters or ()]
    return [(entry.get("sha256"), entry.get("scale")) for entry in entries]


def read_info(folder: Path) -> dict[str, Any]:
    """The run.json of a run folder. Raises ConfigError if it is damaged."""
    file = folder / INFO
    info = read_json(file, REMEDY)
    check_fields(info, TYPES, file, REMEDY)
    nested = {
        "battery": {"hash": str},
        "choices": dict.fromkeys(info.get("choices", ()), (str, list, type(None))),
    }
    for name, types in nested.items():
        check_fields(info.get(name, {}), types, file, REMEDY)
    if not all(map(is_number, info.get("final", {}).values())):
        raise ConfigError(f"{file}: final holds something other than numbers; {REMEDY}")
    if not all(isinstance(override, str) for override in info.get("overrides", ())):
        raise ConfigError(f"{file}: overrides holds something other than text; {REMEDY}")
    return info


def has_results(folder: Path) -> bool:
    return (folder / METRICS).is_file() or (folder / "checkpoints").is_dir()


def begun_with(folder: Path) -> dict[str, Any]:
    """The flat configuration of the run in `folder`; {} if there is no run that has begun."""
    began = (folder / INFO).is_file() and (folder / config_file.NAME).is_file() and has_results(folder)
    return flat(read_config(folder)) if began else {}


def _refuse_wrong_kinds(folder: Path) -> None:
    """Refuse a run folder in which a file stands where t2i needs a folder, or the other way round."""
    for name in FOLDERS:
        if (folder / name).exists() and not (folder / name).is_dir():
            raise ConfigError(f"{folder / name} is a file, not a folder; move it away, or use another run=NAME")
    for name in FILES:
        if (folder / name).exists() and not (folder / name).is_file():
            raise ConfigError(f"{folder / name} is not a file; move it away, or use another run=NAME")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _revision() -> str | None:
    """The commit of the checkout this code runs from, with + if files were changed since; None outside a checkout."""
    checkout = Path(__file__).resolve().parent.parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != checkout:
            return None  # installed inside somebody else's repository
        return git("describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None
