"""What runs on the nodes of a Slurm cluster: a process of a job of a sweep.

    srun python -m t2i.sweeps.slurm_task FOLDER

FOLDER holds jobs.json, in which SLURM_ARRAY_TASK_ID is the number of the job. If the job has been warned, its first
process leaves a file NUMBER.again when the checkpoint is written. If all processes end well, the batch script then
queues the job again.
"""

import importlib
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from t2i.config import ConfigError
from t2i.distributed import slurm
from t2i.runs.config_file import read_config
from t2i.runs.files import NUMBERED, atomic_write, read_json
from t2i.runs.folder import Run, read_info
from t2i.runs.records import is_count
from t2i.sweeps.slurm_script import EARLY
from t2i.training.signals import WARNINGS, Interrupted


class Warned:
    """Notes whether a warning came before the run could take it."""

    def __init__(self) -> None:
        self.so = False
        for signum in (*WARNINGS, signal.SIGTERM):
            signal.signal(signum, self._note)

    def ignore(self) -> None:
        """From now on: the run has ended, and Python's own end must not be taken for a failure."""
        for signum in (*WARNINGS, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if not self.so:
            self.so = True
            raise Interrupted(signum)


def main() -> None:
    """Run the job, and exit."""
    warned, submission = Warned(), Path(sys.argv[1])
    index = int(os.environ["SLURM_ARRAY_TASK_ID"])
    settings = json.loads((submission / "jobs.json").read_text(encoding="utf-8"))
    job = settings["jobs"][index]
    folder, began_at = Path(job["folder"]), newest_step(Path(job["folder"]))
    os.chdir(settings["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    console = os.open(folder / "console.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(console, 1)
    os.dup2(console, 2)
    ends_at, first, again = slurm.ends_at(), os.environ.get("SLURM_PROCID", "0") == "0", submission / f"{index}.again"
    if first:
        again.unlink(missing_ok=True)
    code = _run(settings["main"], job["arguments"])
    warned.ignore()
    if not first:  # its end must not end the first process, which may still be writing the checkpoint
        sys.exit(code if 0 < code < 128 and not warned.so else 0)
    interrupted = warned.so or (code > 128 and _info(folder).get("state") == "interrupted") or out_of_time(folder)
    if not interrupted or _slurm_ends_it():
        sys.exit(code)
    at_limit = ends_at is not None and time.time() > ends_at - settings["signal_delay_s"] - 1.5 * EARLY
    vain = Vain(submission / f"{index}.json", settings["retries"])
    if reason := vain.reason(newest_step(folder) > began_at, at_limit, newest_step(folder)):
        print(f"t2i: {reason}", file=sys.stderr)
        Run.mark(folder, state="failed", error=reason, process=secrets.token_hex(8))
        sys.exit(1)
    print("t2i: the job is queued again", file=sys.stderr)
    again.touch()


def _run(function: list[str], arguments: list[str]) -> int:
    """Call the function `main` of a module; returns the exit code."""
    sys.argv = ["t2i.train", *arguments]
    try:
        call: Callable[[], Any] = getattr(importlib.import_module(function[0]), function[1])
        call()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Interrupted as end:
        return 128 + end.signum
    return 0


def _info(folder: Path) -> dict[str, Any]:
    try:
        return read_info(folder)
    except ConfigError:
        return {}


def out_of_time(folder: Path) -> bool:
    """Whether the run has paused because of max_hours, rather than at stop_at."""
    info = _info(folder)
    try:
        return info.get("state") == "paused" and info.get("paused_at") != read_config(folder).get("stop_at")
    except ConfigError:
        return False


def _slurm_ends_it() -> bool:
    """Whether Slurm is ending the job, or queueing it again, by itself: then the state is no longer RUNNING."""
    state = slurm.show("job", slurm.this_job() or "").get("JobState", "RUNNING")
    if state != "RUNNING":
        print(f"t2i: Slurm ends this job by itself ({state})", file=sys.stderr)
    return state != "RUNNING"


def newest_step(folder: Path) -> int:
    """The step of the run's newest checkpoint; -1 if there is none."""
    steps = (NUMBERED.fullmatch(path.name) for path in folder.glob("checkpoints/step-*"))
    return max((int(step[1]) for step in steps if step), default=-1)


class Vain:
    """Counts how often in a row a job was stopped without having got any further."""

    def __init__(self, file: Path, retries: int):
        """file: which keeps the count until the job begins again."""
        self.file, self.retries = file, retries

    def reason(self, progress: bool, at_limit: bool, step: int) -> str | None:
        """Why the job is not worth being queued again; None if it is."""
        before = self._count()
        if progress:
            self.file.unlink(missing_ok=True)
            return None
        now = {"stops": before["stops"] + 1, "limits": before["limits"] + at_limit}
        atomic_write(self.file, json.dumps(now))
        where = f"at step {step}" if step >= 0 else "before the first checkpoint"
        remedy = "raise hydra.launcher.timeout_min, or encode the data before with t2i encode"
        if now["limits"] >= 2:
            return f"it has reached two time limits without getting any further, both times {where}; {remedy}"
        if now["stops"] > self.retries:
            return f"it was stopped {now['stops']} times without getting any further, each time {where}; {remedy}"
        return None

    def _count(self) -> dict[str, int]:
        """That of a file which a crash has damaged begins anew."""
        try:
            found = read_json(self.file, "") if self.file.is_file() else {}
        except ConfigError:
            found = {}
        return {name: found[name] if is_count(found.get(name)) else 0 for name in ("stops", "limits")}


if __name__ == "__main__":
    main()
