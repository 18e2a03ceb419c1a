"""Train text-to-image diffusion models from composable Hydra configs, and compare the runs honestly.

From Python, `t2i.train("loss=minsnr", "steps=100")` trains as the command does; `t2i.sweep`, `t2i.compare`,
`t2i.open_run` and `t2i.open_runs` are there, too. They are imported when they are used.
"""

import logging
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2i.api.comparing import Compared as Compared
    from t2i.api.comparing import compare as compare
    from t2i.api.process import RunFailed as RunFailed
    from t2i.api.run import Run as Run
    from t2i.api.run import open_run as open_run
    from t2i.api.run import open_runs as open_runs
    from t2i.api.training import sweep as sweep
    from t2i.api.training import train as train
    from t2i.config import ConfigError as ConfigError

__version__ = "0.1.0"

# At import Transformers warns that torchvision is missing, and bitsandbytes that a kernel for 4-bit weights is; t2i
# uses neither.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
logging.getLogger("datasets").setLevel(logging.WARNING)  # else it says which other libraries are installed

_COMMANDS = ("train", "compare")  # modules of commands, which can be called
_NAMES = {
    "Compared": "t2i.api.comparing",
    "ConfigError": "t2i.config",
    "Run": "t2i.api.run",
    "RunFailed": "t2i.api.process",
    "open_run": "t2i.api.run",
    "open_runs": "t2i.api.run",
    "sweep": "t2i.api.training",
}


def __getattr__(name: str) -> Any:
    if name in _COMMANDS:
        return import_module(f"t2i.{name}")
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module t2i has no attribute {name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_COMMANDS, *_NAMES})
