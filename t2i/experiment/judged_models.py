"""Models and images to judge, wherever they come from: runs, pipelines, LoRA files, images of other tools."""

import hashlib
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from t2i.config import ConfigError
from t2i.evaluation.image_battery import Drawn, ImageBattery, draw_batch, missing_batches, write_batch
from t2i.evaluation.image_folder import by_prompt, images_of
from t2i.evaluation.image_metrics.metric import Pictures
from t2i.experiment.evaluation_settings import run_of
from t2i.experiment.image_evaluation import ImageEvaluation, begun, identify
from t2i.models.loading_errors import naming_model
from t2i.models.lora_settings import AVERAGED
from t2i.models.parts import denoiser_of
from t2i.runs import checkpoints, config_file
from t2i.runs.config_file import read_config
from t2i.runs.files import NUMBERED
from t2i.runs.image_files import images_folder
from t2i.runs.links import refuse_links_out
from t2i.runs.scores_file import StoredScores
from t2i.runs.text import printable
from t2i.sampling.images import draw
from t2i.sampling.pipelines import load_on_base, load_pipeline
from t2i.sampling.samplers import with_sampler

log = logging.getLogger(__name__)
MODEL = ("model_index.json", config_file.NAME, "manifest.json", AVERAGED)  # files of which a model's folder has one
ELSEWHERE = Path("multirun") / "evaluated"  # where the images of models are that belong to no run


@dataclass(frozen=True)
class OtherImages:
    """A folder of images that another tool has drawn."""

    folder: Path

    @property
    def prompts(self) -> list[str]:
        """Those that it has images of."""
        return list(by_prompt(self.folder))

    def images(self, battery: ImageBattery, progress: Callable[[list], Iterable]) -> Pictures:
        return images_of(self.folder, battery.prompts, len(battery.seeds))


@dataclass(frozen=True)
class DrawingModel:
    """A model that draws the battery's images into its run's folder, or elsewhere if it belongs to no run."""

    source: str
    weights: str  # ema or raw
    base: str | None  # of a LoRA file

    def images(self, battery: ImageBattery, progress: Callable[[list], Iterable]) -> Drawn:
        """progress: iterates over the batches that are drawn, and may show how far it is."""
        weights = None  # a run's do not change
        if run_of(self.source) is None:
            components = self._pipeline.components
            weights = identify(dict(components[denoiser_of(components)].named_parameters()))
        files = battery.files(self._folder(battery), weights)
        begun(files, weights)
        if batches := missing_batches(files):
            pipeline = with_sampler(self._pipeline, battery.sampler)
            for cells in progress(batches):
                with naming_model(self.source, "sampled from"):  # the model may be anybody's
                    images = draw_batch(battery, cells, partial(draw, pipeline, battery.prompts))
                write_batch(files, cells, images)
        return Drawn(files)

    @cached_property
    def _pipeline(self) -> Any:
        if self.base is not None:
            return load_on_base(self.base, Path(self.source))
        return load_pipeline(self.source, self.weights)

    def _folder(self, battery: ImageBattery) -> Path:
        run = run_of(self.source)
        if run is None:
            name = re.sub(r"[^\w.-]+", "-", Path(self.source).name or "model")
            place = str(Path(self.source).resolve()) if Path(self.source).exists() else self.source
            identity = hashlib.sha256(repr((place, self.base)).encode()).hexdigest()[:8]
            return images_folder(ELSEWHERE / f"{name}-{identity}", battery.hash, 0)
        refuse_links_out(run, run / "images")
        folder = images_folder(run, battery.hash, _step(Path(self.source).resolve(), run))
        return folder if self.weights == "ema" else folder.with_name(f"{folder.name}-raw")


def _step(source: Path, run: Path) -> int:
    """The number of steps that the model was trained for which `load_pipeline` opens."""
    exported = any((run / "model" / file).is_file() for file in MODEL)
    if not exported and not NUMBERED.fullmatch(source.name):
        source = checkpoints.newest(run / "checkpoints") or source
    if checkpoint := NUMBERED.fullmatch(source.name):
        return int(checkpoint[1])
    return int(read_config(run).get("steps") or 0)


def runs_in(source: str) -> list[str]:
    """The finished runs of a sweep's folder; anything else is one source."""
    path = Path(source)
    if not path.is_dir() or any((path / name).is_file() for name in MODEL):
        return [source]
    runs = sorted(file.parent for file in path.glob(f"*/{config_file.NAME}"))
    finished = [run for run in runs if any((run / "model" / name).is_file() for name in MODEL)]
    for run in runs:
        if run not in finished:
            log.warning("%s is left out: it is not finished", printable(str(run)))
    if runs and not finished:
        raise ConfigError(f"{printable(source)} holds no finished run; name a run, to judge its newest checkpoint")
    return list(map(str, finished)) or [source]


def open_source(source: str, weights: str, base: str | None) -> OtherImages | DrawingModel:
    """What a path or Hub id names; nothing heavy is loaded yet."""
    path = Path(source)
    if path.suffix == ".safetensors":
        if base is None:
            raise ConfigError(f"{source}: LoRA weights need the model that they belong to; name it with --base")
        return DrawingModel(source, weights, base)
    inside = [path / name for name in MODEL] + [path / "model" / name for name in MODEL]
    if path.is_dir() and not any(file.is_file() for file in inside):
        return OtherImages(path)
    return DrawingModel(source, weights, None)


def scored(
    opened: OtherImages | DrawingModel, evaluation: ImageEvaluation, progress: Callable[[list], Iterable]
) -> tuple[Pictures, dict[str, StoredScores]]:
    """The images of a source, drawn where they are missing, and their scores; those of a model are stored with them."""
    images = opened.images(evaluation.battery, progress)
    if isinstance(images, Drawn):
        return images, evaluation.judge(images.files, device())
    return images, evaluation.score(images, device())


def device() -> torch.device:
    """Where models draw and networks judge, as in `load_pipeline`."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
