"""Where pipelines are."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from t2i.config import ConfigError
from t2i.config.model_size import BUNDLED
from t2i.hub import check_reachable
from t2i.models.bases import is_run, pipeline_of_run
from t2i.models.loading_errors import naming_model
from t2i.models.single_file_base import is_single_file, pipeline_of_file


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
