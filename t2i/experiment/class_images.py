"""Images of a class that the base draws before it is trained, for prior preservation (Ruiz et al. 2022)."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from omegaconf import DictConfig, OmegaConf

from t2i.config.instantiate import build, resolve
from t2i.data.fingerprints import hash_of
from t2i.data.folder_files import walk
from t2i.data.images import SUFFIXES
from t2i.data.sources import ClassRequest, class_request
from t2i.data.splits import Captioned
from t2i.distributed.processes import assigned
from t2i.models.model import Model
from t2i.optim.precision import resolve_precision
from t2i.rng import generator
from t2i.runs.files import replacing
from t2i.sampling.images import FORWARD_BATCH, draw

log = logging.getLogger(__name__)


def load_data(cfg: DictConfig, accelerator: Accelerator) -> Captioned:
    """The data set of a configuration. Class images that are missing are drawn first, once for all runs."""
    return build(_with_class_images(cfg, accelerator), "dataset")


def _with_class_images(cfg: DictConfig, accelerator: Accelerator) -> DictConfig:
    """The configuration with the folders of all class images, drawn with the steps and the guidance of `samples`."""
    sources = OmegaConf.select(cfg, "dataset.sources")
    if sources is None:
        return cfg
    given = resolve(sources)
    names = list(given) if isinstance(given, Mapping) else range(len(given))
    requests = {name: class_request(f"dataset.sources.{name}", given[name]) for name in names}
    wanted = {name: request for name, request in requests.items() if request is not None}
    if not wanted:
        return cfg
    model: Model = build(cfg, "model")
    scheduler, dtype = build(cfg, "scheduler"), resolve_precision(**cfg.precision).compute
    cfg = cfg.copy()
    for name, request in wanted.items():
        folder = _folder(cfg, model, scheduler, request)
        number = max(0, request.number - _images_in(given[name].get("path")))
        _draw_missing(_pipeline(cfg, model, scheduler, dtype, accelerator), request, folder, number, cfg, accelerator)
        OmegaConf.update(cfg, f"dataset.sources[{name}].class_folder", str(folder), force_add=True)
    return cfg


def _images_in(path: str | None) -> int:
    """How many images a source has of its own."""
    root = Path(path or "").expanduser()
    if path is None or not root.is_dir():  # a folder that does not exist is told of when it is read
        return 0
    return sum(PurePosixPath(name).suffix.lower() in SUFFIXES for name in walk(root, follow_links=False).stats)


def _folder(cfg: DictConfig, model: Model, scheduler: Any, request: ClassRequest) -> Path:
    """Where the images are, by everything that determines them."""
    cache = Path(cfg.cache_dir).expanduser()
    facts = {
        "prompt": request.prompt,
        "model": {key: value for key, value in cfg.model.items() if key != "path"},
        "scheduler": [type(scheduler).__name__, dict(scheduler.config)],
        "samples": [cfg.samples.steps, cfg.samples.guidance_scale],
    }
    content = [*model.denoiser_content, *model.text_content, *model.image_content]
    key = hash_of(*content, json.dumps(facts, sort_keys=True, default=str), memory=cache / "hashes")
    return cache / "class_images" / key


def _pipeline(
    cfg: DictConfig, model: Model, scheduler: Any, dtype: torch.dtype, accelerator: Accelerator
) -> Callable[[Sequence[str]], tuple[Any, Any]]:
    """Makes the base's pipeline and what it is asked for, once some prompts have to be drawn."""

    def make(prompts: Sequence[str]) -> tuple[Any, Any]:
        model.hold(dtype)
        model.to(accelerator.device)
        asked = model.prompts(prompts)
        model.denoiser.to(accelerator.device).eval()
        return model.sampler(scheduler), asked

    return make


def _draw_missing(
    make: Callable[[Sequence[str]], tuple[Any, Any]],
    request: ClassRequest,
    folder: Path,
    number: int,
    cfg: DictConfig,
    accelerator: Accelerator,
) -> None:
    """Draw the images that the folder lacks; the noise of each depends on the prompt and its own number only."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [place for place in range(number) if not (folder / f"{place:05d}.png").is_file()]
    missing = gather_object([missing])[0]  # every process takes what the first one found
    if missing:
        log.info("drawing %d images of %r into %s", len(missing), request.prompt, folder)
        seed = int(hashlib.sha256(request.prompt.encode()).hexdigest()[:16], 16)
        pipeline, asked = make([request.prompt])
        batches = [missing[start : start + FORWARD_BATCH] for start in range(0, len(missing), FORWARD_BATCH)]
        how = {"steps": cfg.samples.steps, "guidance_scale": cfg.samples.guidance_scale}
        for done, batch in enumerate(assigned(batches, accelerator), start=1):
            randoms = [generator(seed, "class_image", place) for place in batch]
            for place, image in zip(batch, draw(pipeline, asked, [0] * len(batch), randoms, **how), strict=True):
                with replacing(folder / f"{place:05d}.png") as file:
                    image.save(file, format="PNG")
            log.info("%d of %d batches of class images", done, len(batches))
    gather_object([None])  # none goes on before all are there
