"""A Ray cluster as the place of a sweep's jobs.

A job is a Ray task, which starts the job's process on the node that Ray chose, as `Machine` does here, and waits for
its end. The nodes share the folders of the sweep, of the data and of t2i. A job whose node is lost begins again from
its last checkpoint on another one.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray import exceptions

from t2i.runs.text import one_line
from t2i.sweeps.job import Job, SweepError
from t2i.sweeps.process import JobAtWork, Losses, cause_of_death

log = logging.getLogger(__name__)
# Variables of the environment that go along, by how they begin; the others are the node's own.
KEPT = ("PYTHONPATH", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "WANDB_", "TRACKIO_", "T2I_")


class RayCluster:
    """Runs each job on a node of a Ray cluster; the options are those of conf/hydra/launcher/plugins/ray.yaml."""

    def __init__(
        self,
        main: Callable[[], Any],
        address: str | None,
        num_cpus: float,
        num_gpus: float | None,
        resources: Mapping[str, float] | None,
        n_jobs: int | None,
        retries: int,
        command: str | None,
    ):
        """main: a function of a module, which each job's process calls with the job's arguments in sys.argv.

        Raises SweepError if there is no cluster, or none of its nodes has what a job needs.
        """
        self.main, self.command, self.limit, self.retries = main, command, n_jobs, retries
        self.lost: dict[Job, Losses] = {}
        _connect(address)
        if num_gpus is None:
            num_gpus = min(1, ray.cluster_resources().get("GPU", 0))
        self.needs = {"CPU": num_cpus, "GPU": num_gpus, **(resources or {})}
        self.options = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "resources": dict(resources or {}),
            "max_retries": 0,
        }
        self.task: Any = ray.remote(_task())
        if not n_jobs and not self._room():
            raise SweepError(
                f"t2i: no node of the Ray cluster has what a job needs ({_listed(self.needs)}); the nodes have "
                f"{'; '.join(_listed(node) for node in _nodes())}. If the cluster grows when needed, set "
                "hydra.launcher.n_jobs to the number of jobs at once"
            )

    @property
    def n_jobs(self) -> int:
        """How many jobs the nodes have room for now."""
        return self.limit or max(1, self._room())

    def _room(self) -> int:
        needs = {name: amount for name, amount in self.needs.items() if amount}
        return sum(
            min((int(node.get(name, 0) // amount) for name, amount in needs.items()), default=1) for node in _nodes()
        )

    def follows(self, job: Job) -> bool:
        return False  # Ray ends the jobs of a command that has ended

    def start(self, job: Job, last_step: int, running: Sequence[Any]) -> "RayJob":
        """Hand a job to Ray, which runs it to a step as soon as a node is free."""
        settings = {
            "main": self.main,
            "arguments": job.until(last_step),
            "console": (job.folder / "console.log").absolute(),
            "environment": {name: value for name, value in os.environ.items() if name.startswith(KEPT)},
            "threads": None,  # Ray sets OMP_NUM_THREADS to num_cpus
            "command": self.command,
        }
        reference = self.task.options(**self.options, name=job.name).remote(sys.path, os.getcwd(), settings)
        return RayJob(job, reference, job.token(), self.lost.setdefault(job, Losses(self.retries)))

    def wait(self, running: Sequence["RayJob"]) -> None:
        """Return when one of them has ended, at the latest after a second."""
        if running:
            ray.wait([started.reference for started in running], timeout=1.0)
        else:
            time.sleep(1.0)


@dataclass
class RayJob(JobAtWork):
    """A job that a node works on, or will work on."""

    job: Job
    reference: ray.ObjectRef
    before: str | None
    losses: Losses
    interrupted: bool = False

    @property
    def alive(self) -> bool:
        return not ray.wait([self.reference], timeout=0)[0]

    def interrupt(self) -> None:
        self.interrupted = True
        ray.cancel(self.reference)

    def end(self, patience: float) -> None:
        with suppress(exceptions.RayError):
            if not ray.wait([self.reference], timeout=patience + 10)[0]:  # the node waits `patience`
                ray.cancel(self.reference, force=True)
        self.record_end()

    def record_end(self) -> None:
        lost = self._lost()
        if lost is None:
            super().record_end()
            return
        self.job.read_metrics()
        if self.interrupted or self.losses.again(self.job.metrics.get("step", 0.0)):
            self.job.state, self.job.reason = "waiting", ""
            if not self.interrupted:
                log.warning("%s: %s; it begins again from its last checkpoint", self.job.name, lost)
        else:
            super().record_end()

    def _lost(self) -> str | None:
        """Why Ray lost the job, or never began it; None if the job's process ended by itself."""
        error = self._error()
        if error is None or isinstance(error, exceptions.RayTaskError):
            return None
        if isinstance(error, exceptions.TaskCancelledError):
            return "cancelled before it began" if self.job.token() == self.before else None
        return f"its node was lost ({one_line(error)})"

    def _error(self) -> Exception | None:
        try:
            ray.get(self.reference, timeout=0)
        except exceptions.RayError as error:
            return error
        return None

    def cause_of_death(self) -> str:
        error = self._error()
        if error is not None:
            return one_line(error.cause if isinstance(error, exceptions.RayTaskError) else error)
        code = ray.get(self.reference)
        if code == 0:
            return f"it ended, but {self.job.folder} shows nothing of it; all nodes must share this folder"
        return cause_of_death(code, self.job.folder / "console.log")


def _connect(address: str | None) -> None:
    """Begin to use the cluster. Raises SweepError if there is none."""
    if ray.is_initialized():
        return
    before = signal.getsignal(signal.SIGTERM)  # Ray takes it
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError) as error:
        raise SweepError(
            f"t2i: hydra.launcher.address={address}: {one_line(error)}; begin a cluster with `ray start --head`, or "
            "set hydra.launcher.address=null to use this machine alone"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, before)


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _listed(resources: Mapping[str, float]) -> str:
    plain = {name: amount for name, amount in resources.items() if ":" not in name and "memory" not in name}
    return ", ".join(f"{name} {amount:g}" for name, amount in plain.items() if amount)


def _task() -> Callable[[list[str], str, dict[str, Any]], int]:
    """What Ray runs on a node. As a function within a function, it travels whole, and finds t2i by itself."""

    def task(paths: list[str], folder: str, settings: dict[str, Any]) -> int:
        sys.path[:] = [*paths, *(path for path in sys.path if path not in paths)]
        os.chdir(folder)
        from t2i.sweeps.ray_node import run_on_node

        return run_on_node(settings)

    return task
