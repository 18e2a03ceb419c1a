"""Trains on one device, in a process that has imported everything: `python -m helpers.device_runs`.

On stdin come JSON lines, a `Job` each; each is answered by a line on stdout: how it ended, and what was measured.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


class Device:
    """A process that trains on `cpu` or `cuda`, one run after the other."""

    def __init__(self, name: str, folder: Path, small: list[str]):
        """folder: of the runs. small: the overrides that all have."""
        self.name, self.folder, self.small = name, folder, small
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if name == "cpu" else {}
        paths = [str(Path(__file__).parent.parent), *sys.path]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "helpers.device_runs"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | hidden | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )

    def train(self, name: str, *overrides: str, **watched: Any) -> dict[str, Any]:
        """A run in the folder `name`; watched: see `run_job`. Its error is in the answer."""
        folder = self.folder / name
        job = {"folder": str(folder), "overrides": [*self.small, *overrides], **watched}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(job), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        return answer | {"folder": folder}

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def run_job(folder: str, overrides: list[str], room: int | None = None, waits: bool = True) -> dict[str, Any]:
    """Train; returns the message of an error (None: it ended well), and what was measured.

    room: bytes that it may take, beside what the process has already. waits: false lets an operation raise that makes
    the host wait for a GPU between the second step and the last.
    """
    import torch
    from omegaconf import OmegaConf

    from helpers.runs import compose
    from t2i.config import ConfigError
    from t2i.experiment import run as experiment
    from t2i.experiment.plan import check_the_rest, make_plan

    cfg = compose(*overrides)
    OmegaConf.resolve(cfg)
    hooks = experiment.hooks
    if not waits and torch.cuda.is_available():
        experiment.hooks = lambda *args: _strict(hooks(*args), cfg.steps)
    limited = _Limited(room)
    try:
        with limited:
            plan = make_plan(cfg)
            check_the_rest(cfg)
            experiment.run(cfg, plan, Path(folder), overrides)
        problem = None
    except (ConfigError, RuntimeError, ArithmeticError) as error:
        problem = f"{type(error).__name__}: {error}"
    finally:
        experiment.hooks = hooks
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")
    held = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    return {"problem": problem, "held": held}


def _strict(hooks: Any, steps: int) -> Any:
    """Hooks between which nothing may wait for the GPU."""
    import dataclasses

    import torch

    def should_stop(step: int) -> bool:
        torch.cuda.set_sync_debug_mode("error" if 2 <= step < steps - 1 else "default")
        return hooks.should_stop(step)

    return dataclasses.replace(hooks, should_stop=should_stop)


class _Limited:
    """Within, there is not more memory than so many bytes beside what is in use; None: as much as there is."""

    def __init__(self, room: int | None):
        self.room = room

    def __enter__(self) -> None:
        import torch

        if self.room is None:
            return
        if torch.cuda.is_available():
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + self.room) / total)
        else:
            import resource

            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + self.room, resource.RLIM_INFINITY))

    def __exit__(self, *_: object) -> None:
        import torch

        if self.room is None:
            return
        if torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(1.0)
        else:
            import resource

            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def main() -> None:
    import logging

    import torch

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(run_job(**json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
