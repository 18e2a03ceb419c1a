"""What the user reads when a model can't be loaded."""

import errno
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch

from t2i.config import ConfigError

NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory")


@contextmanager
def naming_model(path: str | Path, done: str) -> Generator[None, None, None]:
    """Turn what a model causes into a ConfigError that names it. done: what can't be done with it.

    A lack of memory is not blamed on the path. A full GPU stays torch.OutOfMemoryError, as in the rest of a run, and
    what else fails on a GPU stays what it is.
    """
    try:
        with warnings.catch_warnings():  # about a deprecated argument that Diffusers passes on
            warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")
            yield
    except ConfigError:
        raise
    except Exception as error:  # the libraries raise anything for a damaged or strange model
        if isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and "CUDA" in str(error)):
            raise
        reason = _reason(error)
        if _lacks_memory(error):
            raise ConfigError(
                f"out of memory while the weights of {path} were read ({reason}); what helps: end other programs, use "
                "a machine with more memory, raise a limit on it (ulimit -v, a container's), or use a smaller model"
            ) from error
        remedy = "give a folder in the Diffusers layout, as save_pretrained writes it, or the id of one on the Hub"
        raise ConfigError(f"model.path={path} can't be {done}: {reason} ({remedy})") from error


def _reason(error: Exception) -> str:
    """The first line of an error, with its kind where the line alone would say little."""
    line = (str(error).splitlines() or [""])[0]
    says_enough = line and isinstance(error, (OSError, RuntimeError, ValueError, AttributeError))
    return line if says_enough else f"{type(error).__name__}: {line}".removesuffix(": ")


def _lacks_memory(error: BaseException | None) -> bool:
    """Whether an error or one behind it says so: the libraries report a failed mmap as a damaged file."""
    seen = []
    while error is not None and error not in seen:
        seen.append(error)
        text = str(error).lower()
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            return True
        if any(words in text for words in NO_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False
