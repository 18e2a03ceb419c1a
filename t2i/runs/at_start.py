"""With what a run began, which settings that are `auto` keep when it goes on, perhaps on another device."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i.runs.folder import begun_with, read_info
from t2i.runs.parentage import Parent


@dataclass(frozen=True)
class AtStart:
    """None: the run begins now."""

    precision: str | None = None
    channels_last: bool | None = None


def at_start(folder: Path, parent: Parent | None) -> AtStart:
    """With what the run in `folder` began; a fork with all of its parent's state has the parent's layout."""
    if begun_with(folder):
        info = read_info(folder)
        return AtStart(info.get("precision"), _layout(info))
    if parent is not None and parent.only is None:
        return AtStart(channels_last=_layout(parent.info))
    return AtStart()


def _layout(info: Mapping[str, Any]) -> bool | None:
    """channels_last of a run.json; versions that did not note it had the channels first."""
    return info.get("channels_last", False) if "precision" in info else None
