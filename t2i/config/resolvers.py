"""The functions that a configuration may call by ${name:...}: those of conf/, and no others."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer

from t2i.config import ConfigError
from t2i.config.model_size import model_size

OURS = ("either", "stamp", "job_folder", "oc.env", "model_size", "micro_batch", "in_multirun")
HARMLESS = ("hydra", "now", "python_version")  # of Hydra: its own settings, the time, the version
READABLE = (  # environment variables that oc.env gives
    *("T2I_CACHE", "HF_HOME", "WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_NAME"),
    "WANDB_TAGS",
)


def register(job_folder: Callable[[str, list[str]], str], stamp: Callable[[str], str] | None = None) -> None:
    """Make them known to OmegaConf. job_folder: (folder of a sweep, overrides of a job) -> name of the job's folder.

    stamp: group of runs -> group/name of a new run in it; by default the time.
    """
    OmegaConf.register_new_resolver("either", lambda first, second: first or second, replace=True)
    OmegaConf.register_new_resolver("stamp", stamp or (lambda group: f"{group}/{now()}"), replace=True, use_cache=True)
    OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)
    restrict()


def restrict() -> None:
    """Make every resolver that a configuration may not call raise ConfigError; oc.env reads a few variables only."""
    OmegaConf.register_new_resolver("oc.env", environment, replace=True)
    OmegaConf.register_new_resolver("model_size", model_size, replace=True)
    OmegaConf.register_new_resolver("micro_batch", micro_batch, replace=True)
    OmegaConf.register_new_resolver("in_multirun", in_multirun, replace=True)
    for name in set(registered()) - {*OURS, *HARMLESS}:
        OmegaConf.register_new_resolver(name, _refuser(name), replace=True)


def registered() -> list[str]:
    """The names of all resolvers. OmegaConf has no public list of them."""
    return list(BaseContainer._resolvers)


def refusal(error: BaseException | None) -> str | None:
    """The message of the ConfigError that a resolver raised, which OmegaConf wraps; None if there is none."""
    while error is not None:
        if isinstance(error, ConfigError):
            return str(error)
        error = error.__cause__ or error.__context__
    return None


def environment(name: str, default: Any = ...) -> str | None:
    """${oc.env:NAME,default}: a configuration may be a stranger's, and an environment holds passwords."""
    if name not in READABLE:
        raise ConfigError(
            f"${{oc.env:{name}}} is not read, as a configuration may be somebody else's (it can read "
            f"{', '.join(READABLE)}); let the shell insert it on the command line: KEY=$NAME"
        )
    value = os.environ.get(name, default)
    if value is ...:
        raise ConfigError(f"the environment variable {name} is not set; set it, or give the setting another value")
    return None if value is None else str(value)


def micro_batch(largest: int, batch_size: Any) -> int:
    """The largest micro-batch, at most `largest`, of which a batch consists on the processes that there are."""
    if not isinstance(batch_size, int) or batch_size < 1:
        return largest  # which is refused elsewhere
    processes = int(os.environ.get("WORLD_SIZE", 1))
    fitting = (size for size in range(min(largest, batch_size), 0, -1) if batch_size % (size * processes) == 0)
    return next(fitting, largest)


def in_multirun(name: Any) -> str:
    """The folder of a run or sweep: below multirun/, unless its name is an absolute path."""
    folder = Path(os.path.normpath(Path("multirun") / os.path.expanduser(str(name))))
    if not folder.is_absolute() and folder.parts[:1] != ("multirun",):
        raise ConfigError(f"run or sweep={name} leads out of multirun/; give an absolute path, or a name without ..")
    return str(folder)


def now() -> str:
    """The time, for the name of a folder."""
    return time.strftime("%Y-%m-%d_%H-%M-%S")


def _refuser(name: str) -> Callable[..., NoReturn]:
    def refuse(*_: Any) -> NoReturn:
        raise ConfigError(f"${{{name}:...}} can't be used in a configuration of t2i; write the value itself")

    return refuse


restrict()  # conf/ uses these wherever it is composed
