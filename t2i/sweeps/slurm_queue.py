"""Slurm's queue, as squeue shows it: no accounting is needed to see that a job has ended."""

import logging
import os
import subprocess
import time
from dataclasses import dataclass

from t2i.distributed.slurm import PATIENCE
from t2i.runs.text import one_line

log = logging.getLogger(__name__)
FORMAT = "%F|%K|%T|%r|%o"
ENDED = (
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE"),
    *("OUT_OF_MEMORY", "LAUNCH_FAILED", "RECONFIG_FAIL", "REVOKED"),
)
# Reasons for which a job that waits may wait for ever.
STUCK = ("eld", "NeverSatisfied", "PartitionTimeLimit", "PartitionNodeLimit", "BadConstraints", "InvalidAccount")


@dataclass(frozen=True)
class Entry:
    """A job in Slurm's queue, or one that has ended a short while ago."""

    state: str  # PENDING, RUNNING, ...
    reason: str  # why it waits
    script: str  # its batch script

    @property
    def ended(self) -> bool:
        return self.state in ENDED


class Queue:
    """This user's jobs. entries: array job and index, such as "12_3" -> the job."""

    def __init__(self, poll_s: float):
        self.poll_s = poll_s
        self.entries: dict[str, Entry] = {}
        self.looks = 0  # that Slurm has answered
        self.error = ""
        self._next = -float("inf")
        self._left: set[str] = set()

    def look(self) -> None:
        """Ask Slurm, unless it was asked a short while ago. If it does not answer, the jobs count as they were."""
        if time.monotonic() < self._next:
            return
        before, self.error = self.error, ""
        try:
            command = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", f"--format={FORMAT}"]
            shown = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
            self.entries, self.looks = parse(shown.stdout), self.looks + 1
        except subprocess.CalledProcessError as error:
            self.error = " ".join(error.stderr.split()) or one_line(error)
        except (OSError, subprocess.SubprocessError) as error:
            self.error = one_line(error)
        if self.error and not before:
            log.warning("Slurm does not say how the jobs are (%s); it is asked again", self.error)
        self._next = time.monotonic() + self.poll_s

    def leave(self, job: str) -> None:
        """Say once for each array that Slurm goes on with it when this command ends."""
        array = job.partition("_")[0]
        if array not in self._left:
            self._left.add(array)
            log.info(
                "Slurm goes on with job array %s: the same command follows it, and `scancel %s` ends it", array, array
            )


def parse(shown: str) -> dict[str, Entry]:
    """What squeue has printed in the format of this module."""
    entries = {}
    for line in shown.splitlines():
        if line.count("|") >= 4:  # the rest belongs to another job, whose script's name has line breaks
            job, index, state, reason, script = line.split("|", 4)
            entries[f"{job}_{index}"] = Entry(state, reason, script)
    return entries
