"""A single .safetensors file as the model to train: Stable Diffusion 1.x, 2.x, XL, or a transformer.

Diffusers converts it. A file has no settings and no tokenizers: they are those of `model.config`, a folder in the
Diffusers layout, or of the repository that Diffusers takes for such a file.
"""

import hashlib
import json
import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from t2i.config import ConfigError
from t2i.hub import check_reachable
from t2i.models.converted import converted, piece_of
from t2i.models.model_folder import check_folder, check_index
from t2i.models.portable import make_portable

log = logging.getLogger(__name__)

OTHER_FILES = (".ckpt", ".pt", ".pth", ".bin")
SETTINGS = ["*.json", "*.txt", "*.jinja", "*/*.json", "*/*.txt", "*/*.jinja", "*/*.model"]


def is_single_file(path: str | Path, setting: str = "model.path") -> bool:
    file = Path(path)
    if file.suffix in OTHER_FILES and file.is_file():
        raise ConfigError(
            f"{setting}={path}: a {file.suffix} file can run code when it is read; use the model's .safetensors file"
        )
    return file.suffix == ".safetensors" and file.is_file()


def with_config(path: str, config: str | None) -> str:
    """The path of a model that can be opened as a folder: that of a single file's pipeline, or the path as it is."""
    if is_single_file(path):
        return str(pipeline_of_file(Path(path), config))
    if config is not None:
        raise ConfigError(f"model.config={config} has no effect, as model.path={path} is no single file; use null")
    return path


def pipeline_of_file(file: Path, config: str | None) -> Path:
    """The folder of the pipeline that a file holds, made once, in the cache."""
    try:
        with safe_open(file, framework="pt") as opened:
            names = set(opened.keys())
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"model.path={file} can't be read ({error}); copy it again") from error
    folder = Path(config).expanduser() if config else _settings_of(file, names)
    if not (folder / "model_index.json").is_file():
        raise ConfigError(f"model.config={config} must be a folder in the Diffusers layout, with a model_index.json")
    key = hashlib.sha256(piece_of(file))
    for settings in sorted(folder.glob("*/*.json")):
        key.update(settings.read_bytes())
    return converted("single_files", key.hexdigest()[:16], partial(_convert, file, folder))


def _settings_of(file: Path, names: set[str]) -> Path:
    """The settings of the repository that Diffusers takes for such a file, from the Hub or its cache."""
    from diffusers.loaders.single_file_utils import DIFFUSERS_DEFAULT_PIPELINE_PATHS, infer_diffusers_model_type
    from huggingface_hub import snapshot_download

    with safe_open(file, framework="pt") as opened:
        shapes = {name: torch.empty(opened.get_slice(name).get_shape(), device="meta") for name in names}
    repository = DIFFUSERS_DEFAULT_PIPELINE_PATHS[infer_diffusers_model_type(shapes)]["pretrained_model_name_or_path"]
    try:
        check_reachable("model.config", repository, "model")
        return Path(snapshot_download(repository, allow_patterns=SETTINGS))
    except Exception as error:  # the Hub has a dozen types of them
        raise ConfigError(
            f"model.path={file} needs the settings and tokenizers of {repository}, which can't be fetched; give a "
            "folder in the Diffusers layout that has them (no weights): model.config=FOLDER"
        ) from error


def _convert(file: Path, settings: Path, folder: Path) -> None:
    import diffusers

    log.info("converting %s with the settings of %s, once", file, settings)
    index = json.loads((settings / "model_index.json").read_text(encoding="utf-8"))
    check_index(settings, index)
    check_folder(settings, settings, index)
    given = {"config": str(settings), "local_files_only": True}
    try:
        if "transformer" in index:
            _convert_transformer(file, settings, folder, getattr(diffusers, index["transformer"][1]))
            return
        kind: Any = getattr(diffusers, index["_class_name"])
        pipeline = kind.from_single_file(str(file), **given, torch_dtype=torch.float32)
    except ConfigError:
        raise
    except Exception as error:  # Diffusers raises anything for a file that does not fit
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"model.path={file} does not fit the settings of {settings} ({line}); give those of its kind of model as "
            "model.config=FOLDER"
        ) from error
    pipeline.save_pretrained(folder)
    make_portable(pipeline, folder)


def _convert_transformer(file: Path, settings: Path, folder: Path, kind: Any) -> None:
    """Such files hold the transformer; the other parts are those of the settings' folder."""
    if not any(settings.glob("text_encoder*/*.safetensors")):
        raise ConfigError(
            f"model.path={file} holds a transformer only; the folder of model.config must have the other parts with "
            f"weights, and {settings} has not"
        )
    with safe_open(file, framework="pt") as opened:
        dtype = opened.get_tensor(next(iter(opened.keys()))).dtype
    given = {"config": str(settings), "subfolder": "transformer", "local_files_only": True}
    transformer = kind.from_single_file(str(file), **given, torch_dtype=dtype)
    shutil.copytree(settings, folder, ignore=shutil.ignore_patterns("transformer", ".*"))
    transformer.save_pretrained(folder / "transformer")
