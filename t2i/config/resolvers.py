"""The functions that conf/ calls by ${name:...}."""

import os
import time
from collections.abc import Callable

from omegaconf import OmegaConf


def register(job_folder: Callable[[str, list[str]], str]) -> None:
    """Make them known to OmegaConf. job_folder: (folder of a sweep, overrides of a job) -> name of the job's folder."""
    OmegaConf.register_new_resolver("either", lambda first, second: first or second, replace=True)
    OmegaConf.register_new_resolver("stamp", stamp, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)


def stamp() -> str:
    """The time, for the name of a folder. Processes that were launched together take the time of the launch."""
    started = time.time()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        import psutil

        started = psutil.Process(os.getppid()).create_time()
    return time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(started))
