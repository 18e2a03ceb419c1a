"""Judge a model by the images that it draws, while it trains."""

import hashlib
import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from omegaconf import DictConfig
from torch import Tensor
from torch.distributed.tensor import DTensor

from t2i.config import ConfigError
from t2i.data import openmoji
from t2i.data.splits import Captioned, Split
from t2i.distributed.processes import assigned
from t2i.evaluation.copy_pairs import copy_pairs
from t2i.evaluation.image_battery import (
    Drawn,
    ImageBattery,
    Pixels,
    distinct,
    draw_batch,
    missing_batches,
    spread,
    write_batch,
)
from t2i.evaluation.image_metrics.metric import ImageMetric, Judged, Pictures
from t2i.evaluation.prompt_list import read_prompts
from t2i.runs.files import remove_leftovers, replacing
from t2i.runs.full_disk import naming
from t2i.runs.image_files import INDEX, ImageFiles, images_folder, read_images
from t2i.runs.scores_file import StoredScores, write_scores
from t2i.sampling.images import draw
from t2i.sampling.samplers import with_sampler

log = logging.getLogger(__name__)
PAIRS = "nearest.png"  # in the folder of the images: the samples and the training images that are most alike
RESOLUTION = 64  # pixels of an emoji
FORGOTTEN = 3600  # seconds: whoever writes an image for so long was killed
MOST_REFERENCES = 10_000  # held-out images that a set of images is compared with, and training images to look for


@dataclass(frozen=True, kw_only=True)
class ImageEvaluation:
    """The image battery, the metrics, and the images that they may compare with."""

    battery: ImageBattery
    metrics: Mapping[str, ImageMetric]
    cache_dir: str
    references: Pixels | None = None
    reference_of: Sequence[int] | None = None
    trained_on: Pixels | None = None

    def score(self, images: Pictures, device: Any, prompts: Sequence[str] | None = None) -> dict[str, StoredScores]:
        """The scores of P·S images by all metrics; those that need nothing else if `prompts` replace the battery's."""
        judged = Judged(
            prompts=self.battery.prompts if prompts is None else prompts,
            images=images,
            references=self.references,
            reference_of=self.reference_of,
            trained_on=self.trained_on,
        )
        found = {}
        for name, metric in self.metrics.items():
            if prompts is None or not metric.needs:
                scores = metric(judged, device, self.cache_dir)
                found[name] = StoredScores(
                    scores.values, scores.value, metric.better, scores.identity, list(scores.notes), scores.details
                )
        return found

    def judge(self, files: ImageFiles, device: Any) -> dict[str, StoredScores]:
        """The scores of a battery's images, which are stored next to them."""
        images = Drawn(files)
        found = self.score(images, device)
        for name, scores in found.items():
            write_scores(files.folder, name, scores)
            if self.trained_on is not None and scores.details.get("pairs"):
                pairs = copy_pairs(images, self.trained_on, files.prompts, scores.details["pairs"])
                with naming(files.folder), replacing(files.folder / PAIRS) as temporary:
                    pairs.save(temporary)
        return found


def make_image_evaluation(cfg: DictConfig, metrics: Mapping[str, ImageMetric], data: Captioned) -> ImageEvaluation:
    """The image battery of a configuration, with its data set to compare with.

    Raises ConfigError if a metric lacks something to compare with.
    """
    held_out, trained_on = data.validation, None
    if isinstance(data.train, Split):
        trained_on = Pixels(data.train.pixels, _at_most(data.train))
    if not len(held_out):
        if cfg.evaluation.prompts is None:
            raise ConfigError("no image is held out, so its caption can't be a prompt; use evaluation.prompts=FILE")
        return image_evaluation(cfg, metrics, trained_on=trained_on)
    chosen = spread(held_out.weights, cfg.evaluation["items"])
    captions = [held_out.captions[index][0] for index in chosen]
    if cfg.evaluation.prompts is not None or len(set(captions)) < len(captions):  # or several images share a caption
        prompts = None if cfg.evaluation.prompts is not None else list(dict.fromkeys(captions))
        references = Pixels(held_out.pixels, _at_most(held_out))
        return image_evaluation(cfg, metrics, prompts, references=references, trained_on=trained_on)
    own = {"references": Pixels(held_out.pixels, chosen), "reference_of": range(len(chosen))}
    return image_evaluation(cfg, metrics, captions, **own, trained_on=trained_on)


def image_evaluation(
    cfg: DictConfig, metrics: Mapping[str, ImageMetric], prompts: Sequence[str] | None = None, **compared: Any
) -> ImageEvaluation:
    """prompts: None for those that evaluation.prompts names. compared: what the metrics may compare with."""
    settings = cfg.evaluation
    if prompts is None:
        source = settings.prompts if isinstance(settings.prompts, str) else list(settings.prompts)
        prompts = read_prompts(source, settings.column, settings["items"])
    how = {name: settings[name] for name in ("steps", "guidance_scale", "sampler", "size")}
    battery = ImageBattery(prompts, list(settings.seeds), **how)
    evaluation = ImageEvaluation(battery=battery, metrics=metrics, cache_dir=cfg.cache_dir, **compared)
    check_needs(evaluation)
    return evaluation


def emoji_evaluation(
    cfg: DictConfig, metrics: Mapping[str, ImageMetric], emoji: Sequence[tuple[str, str]]
) -> ImageEvaluation:
    """Prompts that are captions of emoji, each of which is compared with its own picture. emoji: character, caption."""
    places = distinct(caption for _, caption in emoji)
    drawn = Pixels(lambda index, view: np.asarray(openmoji.draw(emoji[index][0], RESOLUTION)), places)
    own = {"references": drawn, "reference_of": range(len(places))}
    return image_evaluation(cfg, metrics, [emoji[place][1] for place in places], **own)


def check_needs(evaluation: ImageEvaluation) -> None:
    """Raise ConfigError for a metric that needs what this evaluation does not have."""
    lacking = {
        "references": (evaluation.references is None, "real images to compare with"),
        "reference_of": (
            evaluation.reference_of is None,
            "a real image for each prompt; use evaluation.prompts=null, where no two images share a caption",
        ),
        "trained_on": (evaluation.trained_on is None, "the training images, and a stream can't be searched"),
        "seeds": (len(evaluation.battery.seeds) < 2, "several images of a prompt; use evaluation.seeds=[0,1]"),
    }
    for name, metric in evaluation.metrics.items():
        for need in sorted(metric.needs):
            absent, reason = lacking[need]
            if absent:
                raise ConfigError(f"metric.{name} needs {reason}; or leave {name} out of metric=[...]")


def _at_most(split: Split) -> list[int]:
    return spread(split.weights, min(MOST_REFERENCES, len(split)))


def evaluate_images(
    evaluation: ImageEvaluation,
    run: Path,
    step: int,
    pipeline: Any,
    prompts: Any,
    weights: str,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Draw the battery's images with a pipeline, and judge them; what an interrupted run drew is kept.

    prompts: of the battery, embedded or not. weights: identifies those of the pipeline: images by others are removed.
    """
    is_main = accelerator.is_main_process
    files = evaluation.battery.files(images_folder(run, evaluation.battery.hash, step), weights)
    if is_main and not begun(files, weights):
        log.info("drawing %d images into %s", len(files.missing()), files.folder)
    pipeline = with_sampler(pipeline, evaluation.battery.sampler)
    batches = gather_object([missing_batches(files)] if is_main else [])[0]
    for cells in assigned(batches, accelerator) if batches else ():
        images = draw_batch(evaluation.battery, cells, partial(draw, pipeline, prompts))
        for drawn, done in gather_object([(cells, images)]):
            if is_main:
                write_batch(files, drawn, done)
    found = evaluation.judge(files, accelerator.device) if is_main else {}
    for name, scores in found.items():
        for note in scores.notes:
            log.warning("%s: %s", name, note)
    return {f"images/{name}": scores.value for name, scores in found.items()}


def begun(files: ImageFiles, weights: str | None = None) -> bool:
    """Make the folder of some images, or keep what was drawn there by the same weights (None: by any); True if kept."""
    if (files.folder / INDEX).is_file():
        with suppress(ConfigError):
            found = read_images(files.folder)
            if found.hash == files.hash and weights in (None, found.weights):
                remove_leftovers(files.folder, (".png", ".json"), FORGOTTEN)
                remove_leftovers(files.folder / "scores", (".parquet",), FORGOTTEN)
                return True
        log.warning("%s holds images of other weights, or is damaged; they are drawn again", files.folder)
        shutil.rmtree(files.folder)
    files.write_index()
    return False


def identify(weights: Mapping[str, Tensor]) -> str:
    """A short text that differs for different weights: the hash of their sums; of sharded ones, on this process."""
    local = {name: weight.to_local() if isinstance(weight, DTensor) else weight for name, weight in weights.items()}
    sums = [(name, float(weight.detach().double().sum())) for name, weight in sorted(local.items())]
    return hashlib.sha256(repr(sums).encode()).hexdigest()[:32]
