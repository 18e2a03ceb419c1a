"""What the user reads when a model can't be loaded."""

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from t2i.config import ConfigError
from t2i.config.out_of_memory import lacking


@contextmanager
def naming_model(path: str | Path, done: str) -> Generator[None, None, None]:
    """Turn what a model causes into a ConfigError that names it. done: what can't be done with it.

    A lack of memory is not blamed on the path. A full GPU stays the error that it is, as in the rest of a run, and so
    does what else fails there.
    """
    try:
        with warnings.catch_warnings():  # about a deprecated argument that Diffusers passes on
            warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")
            yield
    except ConfigError:
        raise
    except Exception as error:  # the libraries raise anything for a damaged or strange model
        kind = lacking(error)
        if kind == "gpu" or (isinstance(error, RuntimeError) and "CUDA" in str(error)):
            raise
        reason = _reason(error)
        if kind:
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
