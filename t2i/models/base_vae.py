"""Another autoencoder in the place of the base's own: `model.vae`."""

import hashlib
import logging
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file

from t2i.config import ConfigError
from t2i.hub import check_reachable
from t2i.models.converted import converted, piece_of
from t2i.models.parts import PipelineParts
from t2i.models.single_file_base import is_single_file
from t2i.runs.files import read_json

log = logging.getLogger(__name__)

FILES = ["config.json", "diffusion_pytorch_model.safetensors"]


def use_vae(parts: PipelineParts, vae: str) -> None:
    """Let a pipeline have this autoencoder: a folder or a Hub id, of itself or of a pipeline, or a .safetensors file.

    Raises ConfigError if the denoiser could not work in its latents.
    """
    own = parts.config("vae")
    folder = _folder(parts, vae)
    try:
        config = read_json(folder / "config.json", "choose another")
    except ConfigError as error:
        raise ConfigError(f"model.vae={vae}: {error}") from error
    if config.get("_class_name") != own.get("_class_name"):
        raise ConfigError(
            f"model.vae={vae} is a {config.get('_class_name')}, and the model has a {own.get('_class_name')}; choose "
            "one of that kind, or null"
        )
    for key, what in (("latent_channels", "channels in its latents"), ("block_out_channels", "levels")):
        given, needed = (_count(each.get(key)) for each in (config, own))
        if given != needed:
            raise ConfigError(
                f"model.vae={vae} has {given} {what}, and the denoiser of {parts.folder} works with {needed}; choose "
                "an autoencoder of the same family, or null"
            )
    scales = [each.get("scaling_factor") for each in (config, own)]
    if scales[0] != scales[1]:
        log.warning(
            "model.vae=%s scales its latents by %s, and the model's own by %s: the denoiser has to get used to that",
            *(vae, *scales),
        )
    parts.places["vae"] = folder
    parts.files("vae")


def check_vae(vae: str) -> None:
    """Refuse what can't be an autoencoder; nothing is read or fetched."""
    path = Path(vae).expanduser()
    is_local = vae.startswith((".", "/", "~")) or vae.count("/") != 1
    if not is_single_file(path, "model.vae") and not path.is_dir() and is_local:
        raise ConfigError(f"model.vae={vae}: there is no such folder or .safetensors file, and it is no Hub id")


def _count(value: Any) -> Any:
    return len(value) if isinstance(value, list) else value


def _folder(parts: PipelineParts, vae: str) -> Path:
    path = Path(vae).expanduser()
    if is_single_file(path, "model.vae"):
        key = hashlib.sha256(piece_of(path) + (parts.where("vae") / "config.json").read_bytes())
        return converted("vaes", key.hexdigest()[:16], partial(_convert, parts, path), holds="config.json")
    check_vae(vae)
    root = path if path.is_dir() else _fetched(vae)
    for folder in (root, root / "vae"):
        if (folder / "config.json").is_file():
            return folder
    raise ConfigError(f"model.vae={vae} holds no autoencoder (no config.json or vae/config.json); choose another")


def _fetched(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    check_reachable("model.vae", repository, "model")
    try:
        return Path(snapshot_download(repository, allow_patterns=[*FILES, *(f"vae/{name}" for name in FILES)]))
    except Exception as error:  # the Hub has a dozen types of them
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"model.vae={repository} can't be fetched ({line}); give a folder or a file") from error


def _convert(parts: PipelineParts, file: Path, folder: Path) -> None:
    """Write a file's autoencoder with the settings of the pipeline's own: a file has none."""
    kind, own = parts.classes["vae"], parts.where("vae")
    try:
        with safe_open(file, framework="pt") as opened:
            is_diffusers = any(".down_blocks." in name for name in opened.keys())  # noqa: SIM118 it is no mapping
        if is_diffusers:
            network = kind.from_config(kind.load_config(own))
            network.load_state_dict(load_file(file))
        else:
            network = kind.from_single_file(str(file), config=str(own), local_files_only=True)
    except Exception as error:  # Diffusers raises anything for a file that does not fit
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"model.vae={file} does not fit the autoencoder of {parts.folder} ({line}); give a folder with its own "
            "config.json"
        ) from error
    network.save_pretrained(folder)
