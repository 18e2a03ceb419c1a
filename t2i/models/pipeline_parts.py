"""Opens pipelines in the Diffusers layout, from a folder or the Hub."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download

from t2i.config import ConfigError
from t2i.models.loading import loading, locate
from t2i.models.model_folder import check_folder, check_index
from t2i.models.parts import PipelineParts, is_network
from t2i.models.quantization import check_quantize
from t2i.models.shapes import current_mode

SISTERS = re.compile(r"(Img2Img|Inpaint|PAG)(?=Pipeline$)")  # pipelines with the parts of the one to train
WITHOUT_WEIGHTS = ["*.json", "*.txt", "*.jinja", "*/*.model"]  # settings and tokenizers


def open_pipeline(
    path: str,
    pipeline: Any,
    classes: Mapping[str, Any],
    pretrained: bool,
    revision: str | None,
    variant: str | None,
    dtypes: Mapping[str, torch.dtype] | None = None,
    quantize: str | None = None,
) -> tuple[PipelineParts, dict[str, Any]]:
    """The parts of a pipeline, none of which is read yet, and the contents of model_index.json.

    path: `tiny`, a local folder in the Diffusers layout, or a Hub id, whose files are fetched. pipeline: its class;
    ConfigError if the path holds another. classes: a part that the pipeline was saved without is left out. For the
    other parameters see `PipelineParts`. Inside of `shapes_only` files of weights are neither needed nor fetched.
    """
    check_quantize(quantize, pretrained)
    with loading(path):
        config = pipeline.load_config(locate(path), revision=revision)
        check_index(path, config)
    kind = str(config["_class_name"])
    if SISTERS.sub("", kind) != pipeline.__name__:
        raise ConfigError(
            f"model.path={path} holds a {kind}, not a {pipeline.__name__}; choose the option of model that suits it"
        )
    absent = [name for name in classes if config.get(name, (name,))[0] is None]
    classes = {name: kind for name, kind in classes.items() if name not in absent}
    folder = locate(path)
    if not Path(folder).is_dir() and current_mode():
        with loading(path):
            folder = snapshot_download(folder, revision=revision, allow_patterns=WITHOUT_WEIGHTS)
    elif not Path(folder).is_dir():
        unused = {name: None for name in config if not name.startswith("_") and name not in (*classes, "scheduler")}
        with loading(path):
            folder = pipeline.download(folder, revision=revision, variant=variant, use_safetensors=True, **unused)
    with loading(path):
        check_folder(path, folder, config)
    parts = PipelineParts(str(folder), classes, pretrained, variant, dtypes or {}, quantize)
    parts.absent = absent
    if kind != pipeline.__name__:
        _check_sister(path, kind, parts.config(parts.denoiser))
    for name, kind in classes.items():
        if is_network(kind) and (pretrained or name != parts.denoiser) and not parts.shapes:
            parts.files(name)  # now, so that a missing file is reported before anything is loaded
    return parts, config


def _check_sister(path: str, kind: str, denoiser: Mapping[str, Any]) -> None:
    taken, given = denoiser.get("in_channels"), denoiser.get("out_channels")
    if taken and given and taken != given:
        raise ConfigError(
            f"model.path={path} holds a {kind} whose denoiser takes {taken} channels, with those of a mask or of "
            "another image; t2i trains models that draw from text alone"
        )
