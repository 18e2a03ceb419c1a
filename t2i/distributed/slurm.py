"""What Slurm says of a job: when it ends, and the state that it is in."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping

PATIENCE = 60  # seconds; a busy controller answers slowly
Fields = Mapping[str, str]


def show(entity: str, name: str) -> dict[str, str]:
    """The fields that `scontrol show` has of a job or a node; {} if Slurm does not know it, or can't be asked."""
    try:
        command = ["scontrol", "show", entity, name, "--oneliner"]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.SubprocessError):
        return {}
    pairs = (word.partition("=") for word in shown.stdout.split())
    return {key: value for key, separator, value in pairs if separator}


def this_job(environment: Fields = os.environ) -> str | None:
    """The job that this process belongs to, such as 12 or 12_3; None outside of Slurm.

    SLURM_JOB_ID does not do: in one task of each array it is the number of the array, which means all tasks.
    """
    array, index = (environment.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return environment.get("SLURM_JOB_ID") if array is None or index is None else f"{array}_{index}"


def ends_at(environment: Fields = os.environ, ask: Callable[[str, str], Fields] = show) -> float | None:
    """When Slurm ends this process's job, as time.time() counts; None outside of Slurm, or if there is no limit.

    Slurm before 23.02 does not set SLURM_JOB_END_TIME.
    """
    if (job := this_job(environment)) is None:
        return None
    if (end := environment.get("SLURM_JOB_END_TIME", "")).isdigit():
        return float(end)
    try:
        return time.mktime(time.strptime(ask("job", job).get("EndTime", ""), "%Y-%m-%dT%H:%M:%S"))
    except ValueError:  # Unknown, or no answer
        return None
