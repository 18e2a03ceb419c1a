"""The batch script of a sweep's jobs, what sbatch is asked for, and which options can't work."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from t2i.config.checks import check_batch_size
from t2i.sweeps.job import SweepError

AGAIN = 75  # exit code of a job that has asked Slurm to queue it again (EX_TEMPFAIL)
EARLY = 60  # seconds by which Slurm's warnings may come before their time
PLAIN = (  # options that sbatch has under the same name, with hyphens
    *("nodes", "gpus_per_node", "cpus_per_task", "partition", "account", "qos", "constraint", "exclude", "gres"),
    *("gpus_per_task", "cpus_per_gpu", "mem_per_gpu", "mem_per_cpu", "comment"),
)
INSTEAD = {  # option -> the one that it replaces
    "gres": "gpus_per_node",
    "gpus_per_task": "gpus_per_node",
    "cpus_per_gpu": "cpus_per_task",
    "mem_per_gpu": "mem_gb",
    "mem_per_cpu": "mem_gb",
}
AT_LEAST = {"timeout_min": 1, "nodes": 1, "tasks_per_node": 1, "array_parallelism": 1, "n_jobs": 1}
AT_LEAST |= {"signal_delay_s": 0, "retries": 0, "poll_s": 0}

SCRIPT = """#!/bin/bash
# Written by t2i: runs the job of jobs.json whose number is SLURM_ARRAY_TASK_ID.
trap '' USR1 USR2  # which would end this shell; the job's processes write a checkpoint
{setup}
# Since Slurm 22.05, srun does not take the number of cores from sbatch.
[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
srun --unbuffered --wait=0 --kill-on-bad-exit=1 {python} -u -m t2i.sweeps.slurm_task {folder}
code=$?
if [ $code = 0 ] && [ -e {folder}/$SLURM_ARRAY_TASK_ID.again ]; then
    scontrol requeue ${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID
    exit {again}
fi
exit $code
"""


@dataclass(frozen=True, kw_only=True)
class SlurmOptions:
    """What the jobs need; conf/hydra/launcher/slurm.yaml says what each option does.

    Raises SweepError if a value can't be right.
    """

    timeout_min: int | None
    nodes: int
    tasks_per_node: int
    gpus_per_node: int | str | None
    cpus_per_task: int | None
    mem_gb: float | None
    array_parallelism: int
    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    exclude: str | None
    gres: str | None
    gpus_per_task: int | str | None
    cpus_per_gpu: int | None
    mem_per_gpu: str | None
    mem_per_cpu: str | None
    comment: str | None
    additional_parameters: Mapping[str, Any] = field(default_factory=dict)
    setup: Sequence[str] | None
    name: str | None
    signal_delay_s: int
    retries: int
    n_jobs: int | None
    poll_s: float

    def __post_init__(self) -> None:
        for option, least in AT_LEAST.items():
            value = getattr(self, option)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value < least):
                raise SweepError(f"t2i: hydra.launcher.{option}={value} must be a number, at least {least}")
        if self.timeout_min and self.signal_delay_s and self.signal_delay_s + EARLY >= self.timeout_min * 60:
            raise SweepError(
                f"t2i: hydra.launcher.signal_delay_s={self.signal_delay_s} leaves no time to train of timeout_min="
                f"{self.timeout_min}, as Slurm may warn {EARLY} seconds earlier; raise timeout_min, or lower the other"
            )
        gpus = str(self.gpus_per_node or 0).rpartition(":")[2]
        if not self.replaced("gpus_per_node") and gpus.isdigit() and 0 < int(gpus) < self.tasks_per_node:
            raise SweepError(
                f"t2i: hydra.launcher.tasks_per_node={self.tasks_per_node}: each process needs a GPU of its own, and "
                f"gpus_per_node={self.gpus_per_node}; set it to {self.tasks_per_node}, or to 0 to train on the CPU"
            )

    @property
    def processes(self) -> int:
        """Of each job."""
        return self.nodes * self.tasks_per_node

    def replaced(self, option: str) -> bool:
        """Whether another option stands in the place of this one."""
        return any(old == option and getattr(self, new) is not None for new, old in INSTEAD.items())

    def refuse_batches(self, config: DictConfig) -> None:
        """Raise ConfigError for a job whose batches its processes can't divide."""
        before = os.environ.get("WORLD_SIZE")
        os.environ["WORLD_SIZE"] = str(self.processes)  # by which ${micro_batch:} chooses
        try:
            check_batch_size(config.batch_size, config.micro_batch_size, self.processes)
        finally:
            os.environ.pop("WORLD_SIZE")
            os.environ.update({} if before is None else {"WORLD_SIZE": before})

    def flags(self, name: str, jobs: int) -> list[str]:
        """The options of sbatch for an array of `jobs` jobs. name: of the jobs, unless an option gives one."""
        values: dict[str, Any] = {option: getattr(self, option) for option in PLAIN if not self.replaced(option)}
        values["gpus_per_node"] = values.get("gpus_per_node") or None
        values |= {
            "job_name": self.name or name,
            "array": f"0-{jobs - 1}%{self.array_parallelism}",
            "time": self.timeout_min,
            "ntasks_per_node": self.tasks_per_node,
            "mem": None if self.replaced("mem_gb") or self.mem_gb is None else f"{round(self.mem_gb * 1024)}M",
            "signal": f"USR2@{self.signal_delay_s}" if self.signal_delay_s else None,
            "requeue": True,
            "open_mode": "append",
            **self.additional_parameters,
        }
        given = {k.replace("_", "-"): v for k, v in values.items() if v is not None and v is not False}
        return [f"--{key}" if value is True else f"--{key}={value}" for key, value in given.items()]

    def script(self, folder: Path, paths: str | None) -> str:
        """The batch script of the jobs in `folder`/jobs.json. paths: for PYTHONPATH."""
        setup = [f"export PYTHONPATH={shlex.quote(paths)}"] if paths else []
        return SCRIPT.format(
            setup="\n".join([*setup, *(self.setup or ())]),
            python=shlex.quote(sys.executable),
            folder=shlex.quote(str(folder)),
            again=AGAIN,
        )
