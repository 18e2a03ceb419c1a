"""A single .safetensors file as the model to train: Stable Diffusion 1.x, 2.x, XL, or a transformer.

Diffusers converts it. A file has no settings and no tokenizers. The settings of Stable Diffusion 1.5, 2.1 and XL are
known; all can be those of `model.config`, a folder in the Diffusers layout, or of the repository that Diffusers takes
for such a file.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from t2i.config import ConfigError
from t2i.config.model_size import options
from t2i.hub import check_reachable
from t2i.models.clip_vocabulary import ARCHIVE, END, find_vocabulary, packaged_vocabulary, write_tokenizer
from t2i.models.converted import converted, piece_of
from t2i.models.model_folder import check_folder, check_index
from t2i.models.portable import make_portable
from t2i.models.single_file_settings import PADDING, SETTINGS

log = logging.getLogger(__name__)

OTHER_FILES = (".ckpt", ".pt", ".pth", ".bin")
FROM_HUB = ["*.json", "*.txt", "*.jinja", "*/*.json", "*/*.txt", "*/*.jinja", "*/*.model"]

IN_COMFYUI = "model.diffusion_model."  # before the names of a denoiser in its checkpoints
V2 = (
    "the file does not say which Stable Diffusion 2 it is; it is taken for 2.1 with v-prediction at 768 pixels. For a "
    "base of 512 pixels, which predicts noise, add scheduler.prediction_type=epsilon dataset.resolution=512"
)
PIPELINES = {  # what Diffusers calls the kind of a file -> what model_index.json calls such a model
    **{"v1": "StableDiffusionPipeline", "v2": "StableDiffusionPipeline", "xl_base": "StableDiffusionXLPipeline"},
    **dict.fromkeys(("sd3", "sd35_medium", "sd35_large"), "StableDiffusion3Pipeline"),
    **{"flux-dev": "FluxPipeline", "flux-schnell": "FluxPipeline", "flux-2-dev": "Flux2Pipeline"},
    **{"z-image-turbo": "ZImagePipeline", "sana": "SanaPipeline"},
}


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
    folder = Path(config).expanduser() if config else None
    if folder is None or not (folder / "model_index.json").is_file():
        folder = _settings_of(file, folder)
    key = hashlib.sha256(piece_of(file))
    for settings in sorted(folder.glob("*/*.json")):
        key.update(settings.read_bytes())
    return converted("single_files", key.hexdigest()[:16], partial(_convert, file, folder))


def kind_of_file(file: Path) -> str | None:
    """What Diffusers calls the kind of model in a file, such as v1 or xl_base; None if it is none that it knows."""
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            shapes = {name: torch.empty(opened.get_slice(name).get_shape(), device="meta") for name in names}
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"model.path={file} can't be read ({error}); copy it again") from error
    try:
        kind = infer_diffusers_model_type(shapes)
    except (IndexError, KeyError) as error:  # it looks at the shapes of some weights
        raise ConfigError(f"model.path={file} holds weights of shapes that no model has; use another file") from error
    if kind == "v1" and "model.diffusion_model.input_blocks.0.0.weight" not in shapes:  # which it says of all others
        return None
    return kind


def check_kind(path: str, pipelines: Sequence[str]) -> None:
    """Refuse a single file of another kind than the option of `model` is for, by the names of its weights.

    pipelines: what model_index.json may call models of the option; none: any kind.
    """
    if not pipelines or not is_single_file(path):
        return
    kind = kind_of_file(Path(path))
    held = PIPELINES.get(str(kind))
    if held and held not in pipelines:
        fitting = next((name for name, each in options().items() if held in each.pipelines and name != "tiny"), "NAME")
        raise ConfigError(
            f"model.path={path} holds a {held} (Diffusers calls it {kind}), and the option of model is for "
            f"{' or '.join(pipelines)}; use model={'sd21' if kind == 'v2' else fitting}"
        )


def _settings_of(file: Path, tokenizers: Path | None) -> Path:
    """Settings and tokenizers for a file; those of Stable Diffusion 1.5, 2.1 and XL are known here.

    tokenizers: a folder with CLIP's vocabulary; None: that of a package, or of the Hub.
    """
    kind = kind_of_file(file)
    if kind not in SETTINGS:
        if tokenizers is not None:
            raise ConfigError(
                f"model.config={tokenizers} must be a folder in the Diffusers layout, with a model_index.json"
            )
        return _from_hub(file, kind)
    vocabulary = find_vocabulary(tokenizers) if tokenizers else packaged_vocabulary()
    if vocabulary is None:
        return _without_vocabulary(file, kind, tokenizers)
    with safe_open(file, framework="pt") as opened:
        marks = {"v_pred", "ztsnr"} & set(opened.keys())
    if kind == "v2":
        log.info(V2)
    key = hashlib.sha256(json.dumps([kind, sorted(marks), vocabulary, SETTINGS[kind]]).encode()).hexdigest()
    return converted("settings", key[:16], partial(_write_settings, kind, marks, vocabulary))


def _without_vocabulary(file: Path, kind: str, tokenizers: Path | None) -> Path:
    """The settings of the Hub, which come with tokenizers; ConfigError that says how to get a vocabulary else."""
    if tokenizers is not None:
        raise ConfigError(
            f"model.config={tokenizers} must be a folder in the Diffusers layout, with a model_index.json, or one with "
            f"CLIP's vocabulary: vocab.json and merges.txt, or {ARCHIVE}"
        )
    try:
        return _from_hub(file, kind)
    except ConfigError as error:
        raise ConfigError(
            f"model.path={file} needs CLIP's vocabulary, which a file has not and the Hub can't be asked for. `pip "
            f"install --no-deps open_clip_torch` brings it; or give a folder with {ARCHIVE} of OpenAI, or with "
            "vocab.json and merges.txt: model.config=FOLDER"
        ) from error


def _write_settings(kind: str, marks: set[str], vocabulary: tuple[dict[str, int], list[str]], folder: Path) -> None:
    """marks: names by which ComfyUI tells that XL predicts v, at zero terminal SNR."""
    for name, content in SETTINGS[kind].items():
        if name.startswith("scheduler") and "v_pred" in marks:
            content = {**content, "prediction_type": "v_prediction", "rescale_betas_zero_snr": "ztsnr" in marks}
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    for name in ("tokenizer", "tokenizer_2"):
        if name in SETTINGS[kind]["model_index"]:
            write_tokenizer(folder / name, *vocabulary, PADDING.get((kind, name), END))


def _from_hub(file: Path, kind: str | None) -> Path:
    """The settings of the repository that Diffusers takes for such a file, from the Hub or its cache."""
    from diffusers.loaders.single_file_utils import DIFFUSERS_DEFAULT_PIPELINE_PATHS
    from huggingface_hub import snapshot_download

    repository = DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind or "v1"]["pretrained_model_name_or_path"]
    try:
        check_reachable("model.config", repository, "model")
        return Path(snapshot_download(repository, allow_patterns=FROM_HUB))
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
    state = load_file(file)
    if inside := {name: value for name, value in state.items() if name.startswith(IN_COMFYUI)}:
        if others := state.keys() - inside.keys():
            log.info("%s holds other parts as well, which are not read, such as %s", file, min(others))
        state = {name.removeprefix(IN_COMFYUI): value for name, value in inside.items()}
    given = {"config": str(settings), "subfolder": "transformer", "local_files_only": True}
    transformer = kind.from_single_file(state, **given, torch_dtype=next(iter(state.values())).dtype)
    shutil.copytree(settings, folder, ignore=shutil.ignore_patterns("transformer", ".*"))
    transformer.save_pretrained(folder / "transformer")
