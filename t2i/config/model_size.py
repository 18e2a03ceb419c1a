"""The image size that a model was made for, from the settings in its files; no weights and no network code are read."""

import json
import logging
import re
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from t2i.config import CONF, PACKAGE, ConfigError

log = logging.getLogger(__name__)
USUAL = 512  # of a model that says nothing, and is not known
BUNDLED = {"tiny": PACKAGE / "tiny" / "pipeline", "tiny_flow": PACKAGE / "tiny" / "flow"}
LATENTS_OF_TRANSFORMERS = 1024  # pixels, where a transformer's settings name no size
PATH = re.compile(r"^  path: (\S+)", re.MULTILINE)  # in the file of an option of `model`
MADE_FOR = re.compile(r"^made_for: \{size: (\d+), pipelines: \[(.*?)\]\}", re.MULTILINE)
SMALL = 128  # pixels; models for such images are trained as the tiny one is
MOST_BASES = 10
LARGEST = 1_000_000  # bytes of a file of settings
FARTHEST = 8  # times the size that a model was made for


class Option(NamedTuple):
    """What the file of an option of `model` says of the models that it is for."""

    path: str
    size: int  # pixels
    pipelines: tuple[str, ...]  # what model_index.json may call them


@cache
def options() -> dict[str, Option]:
    """The options of `model` by name, from the lines of their files that say it: no YAML is parsed."""
    found = {}
    for file in sorted((CONF / "model").glob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        path, made_for = PATH.search(text), MADE_FOR.search(text)
        if path and made_for:
            found[file.stem] = Option(path[1], int(made_for[1]), tuple(re.findall(r"\w+", made_for[2])))
    return found


def model_size(path: Any, usual: int = USUAL) -> int:
    """Width and height in pixels. path: model.path, of which nothing may be known yet; then it is the usual size."""
    sizes = _sizes(path)
    return sizes[0] if sizes else usual


def check_resolution(cfg: DictConfig) -> None:
    """Refuse a resolution that the model can't be trained at, and say what one costs that it was not made for."""
    path, resolution = cfg.model.get("path"), cfg.dataset.get("resolution")
    if not isinstance(resolution, int) or isinstance(resolution, bool):
        return
    if (sizes := _sizes(path)) is None:
        return
    size, smallest, multiple = sizes
    if resolution < smallest or resolution > FARTHEST * size:
        raise ConfigError(
            f"dataset.resolution={resolution}: {path} was made for {size} × {size} pixels, and can be trained "
            f"from {smallest} to {FARTHEST * size}; leave the setting out for {size}, or choose another model"
        )
    if resolution % multiple and not cfg.dataset.get("buckets"):
        near = sorted({max(1, resolution // multiple) * multiple, (resolution // multiple + 1) * multiple})
        raise ConfigError(
            f"dataset.resolution={resolution} is not a multiple of the {multiple} pixels of a patch of {path}; try "
            f"{' or '.join(map(str, near))}"
        )
    if resolution != size:
        factor = (resolution / size) ** 2
        cost = f"a step takes about {factor:.3g} times the time and memory"
        if resolution < size:
            cost = f"a step takes about {factor:.1%} of the time, but the model can forget how to draw at {size}"
        message = (
            "dataset.resolution=%d, but %s was made for %d: %s; samples are drawn at %s pixels (samples.size, "
            "evaluation.size). Without the setting, images have %d pixels"
        )
        log.warning(message, resolution, path, size, cost, cfg.samples.get("size") or size, size)


def check_model_is_named(cfg: DictConfig, chosen: str, typed: list[str]) -> None:
    """Ask for the option of `model` where a pipeline of another kind would be trained as the tiny model is."""
    path = cfg.model.get("path")
    if chosen != "tiny" or any(override.startswith("model=") for override in typed):
        return
    if path == "tiny":
        if "openmoji" not in str(cfg.dataset.get("_target_")) and cfg.dataset.get("path"):
            log.warning(
                "without model=, the tiny model is trained, which knows emoji of 64 pixels; for photos and larger "
                "images name another, such as model=sd15 (t2i settings model lists them)"
            )
        return
    kind = _class_of(path)
    if kind is None and (not path or str(path).startswith((".", "/", "~"))):  # loading it says what is wrong
        return
    if (size := model_size(path)) > SMALL or kind not in (None, "StableDiffusionPipeline"):
        known = {name: abs(each.size - size) for name, each in options().items() if kind in each.pipelines}
        option = min(
            (name for name in known if options()[name].path not in BUNDLED), key=known.__getitem__, default="NAME"
        )
        raise ConfigError(
            f"model.path={path} is a {kind or 'model'} for {size} pixels: which settings is it to be trained with? "
            f"Without model=, they are those of the tiny model (lr {cfg.optimizer.lr:g}, batch {cfg.batch_size}, "
            f"{cfg.steps} steps): add model={option}, or model=tiny if you mean these"
        )


def _sizes(path: Any) -> tuple[int, int, int] | None:
    """The size in pixels, the smallest that can be encoded, and what a size must be a multiple of; None if unknown."""
    folder = _folder(str(path)) if path else None
    if folder is None:
        size = next((each.size for each in options().values() if each.path == str(path)), None)
        return None if size is None else (size, 8, 1)
    denoiser, is_unet = _json(folder / "transformer" / "config.json"), False
    if not denoiser:
        denoiser, is_unet = _json(folder / "unet" / "config.json"), True
    vae = _json(folder / "vae" / "config.json")
    channels = vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or [0, 0, 0, 0]
    factor = 2 ** (len(channels) - 1)
    latents = denoiser.get("sample_size")
    latents = min(latents) if isinstance(latents, list) and latents else latents
    if not isinstance(latents, int) or not latents > 0:
        return (USUAL if is_unet else LATENTS_OF_TRANSFORMERS), factor, 1
    patch = denoiser.get("patch_size")
    return latents * factor, factor, factor * (1 if is_unet or not isinstance(patch, int) else patch)


def _folder(path: str, followed: int = 0) -> Path | None:
    """The pipeline's folder: bundled, of a run, or in the Hub's cache; None if there is none.

    followed: how many runs were trained on each other's adapters before it.
    """
    if path in BUNDLED:
        return BUNDLED[path]
    try:
        folder = Path(path).expanduser()
    except RuntimeError:  # ~NAME of nobody
        return None
    for place in (folder, folder / "model"):
        if (place / "model_index.json").is_file():
            return place
    if (folder / "config.yaml").is_file() and followed < MOST_BASES:  # a run without a pipeline of its own: its base
        return _folder(_base_of(folder), followed + 1)
    return _cached(path) if path.count("/") == 1 and not folder.exists() else None


def _base_of(run: Path) -> str:
    """What the run's model.path is; the run may be a stranger's, so its YAML is not parsed."""
    lines = (run / "config.yaml").read_bytes()[:LARGEST].decode(errors="replace").splitlines()
    of_model = (
        takewhile(lambda line: line.startswith(" "), lines[lines.index("model:") + 1 :]) if "model:" in lines else ()
    )
    return next((line.partition(":")[2].strip(" '\"") for line in of_model if line.startswith("  path:")), "")


def _cached(repository: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repository, "model_index.json")
    except (HFValidationError, ValueError):
        return None
    return Path(found).parent if isinstance(found, str) else None


def _class_of(path: Any) -> str | None:
    folder = _folder(str(path)) if path else None
    name = _json(folder / "model_index.json").get("_class_name") if folder else None
    return name if isinstance(name, str) else None


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file() or file.stat().st_size > LARGEST:
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
