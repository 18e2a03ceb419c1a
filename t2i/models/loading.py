"""Where pipelines are, and what the user reads when one of them can't be loaded."""

import errno
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch

from t2i.config import ConfigError
from t2i.config.model_size import BUNDLED
from t2i.hub import check_reachable
from t2i.models.bases import is_run, pipeline_of_run
from t2i.models.single_file_base import is_single_file, pipeline_of_file

NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory")


def locate(path: str | Path) -> str:
    """What Diffusers can load: a local folder, such as that of a bundled pipeline or of a run's model, or a Hub id.

    A path that looks local (it begins with `.`, `/` or `~`, or exists) must hold a pipeline: Diffusers would otherwise
    ask the Hub for it and say that no such repository exists.
    """
    if str(path) in BUNDLED:
        return str(BUNDLED[str(path)])
    try:
        folder = Path(path).expanduser()
    except RuntimeError as error:  # ~NAME of nobody
        raise ConfigError(f"model.path={path}: {error}; give the folder without ~") from error
    if is_single_file(folder):
        return str(pipeline_of_file(folder, None))
    if is_run(folder):
        return str(pipeline_of_run(folder))
    looks_local = str(path).startswith((".", "/", "~")) or folder.is_dir()
    if looks_local and not (folder / "model_index.json").is_file():
        raise ConfigError(
            f"model.path={path} holds no pipeline (no model_index.json); give a folder that save_pretrained wrote"
        )
    return str(folder) if looks_local else str(path)


@contextmanager
def loading(path: str | Path) -> Generator[None, None, None]:
    """Turn the failure to read a pipeline, or to reach the Hub, into a ConfigError with the setting and the remedy."""
    check_reachable("model.path", locate(path), "model")
    with naming_model(path, "loaded"):
        yield


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
