"""What a tracker gets to know about a run when it starts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunInfo:
    folder: Path
    name: str  # as the dashboard shows it
    group: str | None  # the sweep that the run belongs to
    tags: list[str]
    config: dict[str, Any]
    run_id: str | None  # the tracker's id of the run to continue; None begins a new one
    last_step: int  # later steps are about to be logged, or logged again; -1: all steps
