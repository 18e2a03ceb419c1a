"""Which settings of a run may change when it goes on, and which changes make it another run."""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t2i.config.keys import belongs
from t2i.config.moved_targets import ADDED

# A run may be continued with other values of these: they do not change what is computed (threads: only its rounding).
FREE_KEYS = (
    *("run", "sweep", "stop_at", "max_hours", "max_bad_steps", "num_workers", "threads", "cache_dir", "tracker"),
    *("allowed_targets", "save_every", "keep_checkpoints", "keep_at", "hub", "dataset.cache_dir"),
    *("save_in_background", "process_timeout"),
    *("dataset.keep_shards", "dataset.follow_links", "validation.quantization_cost"),
    *("evaluate_every", "evaluation", "metric"),
    *("export", "adapter.formats", "adapter.single_file"),
    # What they are for is in dataset.resolution and adapter.target_modules; a checkpoint of other layers is refused.
    *("made_for", "adapted_layers", "feed_forward_layers", "adapter.layer_names"),
)
# Neither do these, which decide whether the run fits into memory.
MEMORY_KEYS = (
    *("micro_batch_size", "gradient_checkpointing", "checkpoint_levels", "attention", "compile", "channels_last"),
    "backend",
)
# Neither do these, which decide what is recorded of it.
OBSERVED = ("log_every", "sample_every", "samples")
VALIDATIONS = "validate_every"  # free unless early stopping counts validations
PATHS = (
    *("model.path", "model.vae", "model.config", "scheduler.path", "scheduler.config", "adapter.path"),
    *("dataset.path", "dataset.masks", "from.run"),
)
HOLDING_PATHS = ("model.adapters", "dataset.sources")  # lists, or settings below them


def changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """key -> description, for each difference of two flat configurations that changes what is computed.

    A path that leads to the same place is the same, however it is written.
    """
    before = {key: ADDED[key] for key in ADDED if key in now} | before
    free = free_keys(before, now)
    return {
        key: f"{key}: {before.get(key)} → {now.get(key)}"
        for key in sorted(before | now)
        if before.get(key) != now.get(key) and not belongs(key, free) and not _same_place(key, before, now)
    }


def free_keys(*configs: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys that change nothing that is computed, whichever of these flat configurations a run has."""
    counted = any(config.get("early_stop.patience") is not None for config in configs)
    return (*FREE_KEYS, *MEMORY_KEYS, *OBSERVED, *(() if counted else (VALIDATIONS,)))


def _same_place(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two values of a path lead to the same existing file or folder, or the data were moved.

    Whether moved data are the same is known by their fingerprint, once they have been read.
    """
    old, new = before.get(key), now.get(key)
    if belongs(key, HOLDING_PATHS):
        return _alike(old, new)
    if key not in PATHS or not isinstance(old, str) or not isinstance(new, str):
        return False
    if key == "from.run":
        (old, _, old_step), (new, _, new_step) = old.partition("@"), new.partition("@")
        if old_step != new_step:
            return False
    places = [place for text in (old, new) if (place := existing(text, key)) is not None]
    if len(places) == 2:
        return os.path.realpath(places[0]) == os.path.realpath(places[1])
    moved = existing(old, key) is None and existing(new, key) is not None
    return moved and key == "dataset.path" and before.get("dataset._target_") == now.get("dataset._target_")


def _alike(old: Any, new: Any) -> bool:
    """Whether two values are the same but for the spelling of paths in them, such as FILE or FILE:0.8."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(_alike(old[key], new[key]) for key in old)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_alike, old, new))
    if not isinstance(old, str) or not isinstance(new, str) or old == new:
        return bool(old == new)
    for (old_place, old_scale), (new_place, new_scale) in (((old, ""), (new, "")), (_split(old), _split(new))):
        places = existing(old_place), existing(new_place)
        if None not in places and old_scale == new_scale:
            return os.path.realpath(str(places[0])) == os.path.realpath(str(places[1]))
    return False


def _split(text: str) -> tuple[str, str]:
    place, _, scale = text.rpartition(":")
    return place, scale


def existing(text: str, key: str = "") -> Path | None:
    """The file or folder that a path names, if there is one; from.run may name a folder in multirun/."""
    try:
        paths = [Path(text).expanduser(), *([Path("multirun") / text] if key == "from.run" else [])]
        return next((path for path in paths if path.exists()), None)
    except (OSError, RuntimeError, ValueError):  # a name that is too long, ~NAME of nobody, a null character
        return None


def how_to_fork(folder: Path, typed: Sequence[str], differ: Mapping[str, str], now: Mapping[str, Any]) -> str:
    """The command that goes on from the run in `folder` with other settings.

    typed: the overrides that the run did not begin with. differ: the keys that differ; now: their values today, for
    when nothing was typed that says so.
    """
    own = [text for text in typed if not text.lstrip("+~").startswith(("run=", "sweep=", "from=", "from.", "hydra"))]
    own = own or [f"{key}={_as_typed(now.get(key))}" for key in differ]
    name = called(folder)
    return shlex.join(["t2i", "train", f"from={name}", *own, f"run={Path(name).name}-2"])


def _as_typed(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def called(folder: Path) -> str:
    """A run as it can be typed after from=: its name in multirun/, or its path."""
    runs, path = os.path.abspath("multirun"), os.path.abspath(folder)
    return os.path.relpath(path, runs) if path.startswith(f"{runs}{os.sep}") else str(folder)
