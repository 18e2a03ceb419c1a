"""What to type next: the commands that suit the state of a run."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from t2i.config.keys import belongs, key_of, set_by
from t2i.runs.changes import called
from t2i.runs.parentage import complete_steps

# Not repeated: where a run is and where it paused; and, as it may be a stranger's, what is allowed and how Hydra works.
LEFT_OUT = ("run", "sweep", "stop_at", "hydra", "allowed_targets", "dataset.follow_links")


class Step(NamedTuple):
    """What can be done, and the command for it; "" where there is nothing to type."""

    what: str
    command: str


def next_steps(
    folder: Path, state: str, info: Mapping[str, Any], steps: Any = None, in_sweep: bool = False
) -> list[Step]:
    """info: run.json. steps: those of the run's configuration. The commands are quoted for a shell."""
    path = as_typed(folder)
    match state:
        case "finished":
            return _after_the_end(folder, path, steps, in_sweep)
        case "running":
            return [Step("see how it goes on; the page renews itself", _command("t2i", "show", path, "--watch"))]
        case "unreadable":
            return []
        case _:
            return [_again(folder, info, in_sweep)]


def _after_the_end(folder: Path, path: str, steps: Any, in_sweep: bool) -> list[Step]:
    longer = f"steps={2 * steps}" if isinstance(steps, int) and steps > 0 else "steps=..."
    found = [Step("draw images", _command("t2i", "sample", path, "a prompt"))] if (folder / "model").is_dir() else []
    found.append(Step("look at its curves, samples and settings", _command("t2i", "show", path)))
    if in_sweep:
        return [*found, Step("compare the runs of its sweep", _command("t2i", "compare", as_typed(folder.parent)))]
    train = _command("t2i", "train", f"from={called(folder)}", longer, f"run={folder.name}-2")
    return [*found, Step("train it for longer", train)]


def _again(folder: Path, info: Mapping[str, Any], in_sweep: bool) -> Step:
    """The command that goes on with a run that has not finished."""
    saved = complete_steps(folder)
    what = f"go on from its checkpoint of step {saved[-1]}" if saved else "begin again (it has no checkpoint yet)"
    if in_sweep:
        return Step(f"{what}: repeat the command of the sweep", "")
    overrides = [text for text in _overrides(info) if not any(belongs(key, LEFT_OUT) for key in set_by(text))]
    return Step(what, _command("t2i", "train", *overrides, f"run={called(folder)}"))


def _overrides(info: Mapping[str, Any]) -> list[str]:
    overrides = info.get("overrides")
    return [text for text in overrides if isinstance(text, str) and key_of(text)] if isinstance(overrides, list) else []


def as_typed(folder: Path) -> str:
    """A folder as it is typed here: below the current folder, or in full."""
    absolute, here = os.path.abspath(folder), os.getcwd()
    return os.path.relpath(absolute, here) if absolute.startswith(f"{here}{os.sep}") else absolute


def _command(*parts: str) -> str:
    return shlex.join(parts)
