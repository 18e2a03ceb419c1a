"""The batteries that a configuration asks for."""

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from t2i.config import ConfigError
from t2i.data.cached_split import Examples
from t2i.data.fingerprints import hash_of
from t2i.data.latent_cache import Encoded, encode
from t2i.data.loader import Readable
from t2i.data.splits import Captioned, Split
from t2i.evaluation.batteries import HELD_OUT, REFERENCE, TRAIN, of_fold, of_training_images
from t2i.evaluation.battery import Battery, make_battery
from t2i.experiment.plan import Plan
from t2i.models.model import Model

log = logging.getLogger(__name__)


def check_data(cfg: DictConfig, data: Captioned) -> None:
    """Refuse batteries that the data set has no images for."""
    if not data.train.cached and (cfg.validation.images == "train" or cfg.validation.train_items):
        setting = "images=train" if cfg.validation.images == "train" else f"train_items={cfg.validation.train_items}"
        raise ConfigError(
            f"validation.{setting}: the images of a stream are not known before training; leave the setting out"
        )
    if cfg.validation.images == "held_out" and data.why_none:
        if cfg.early_stop.patience is not None:
            raise ConfigError(f"early_stop.patience: no image is held out ({data.why_none}); use null")
        message = "no image is held out (%s): validation measures the images that are trained on, as val/train_loss"
        log.warning(message, data.why_none)
    elif cfg.validation.images == "held_out" and not len(data.validation):
        raise ConfigError(
            "dataset.validation_share=null holds no image out; use a fraction, or validation.images=train to measure "
            "images that are trained on"
        )


def make_batteries(
    cfg: DictConfig, plan: Plan, data: Captioned, reference: Split | None, examples: Readable, model: Model
) -> dict[str, Battery]:
    """By name; the first is the one that runs are judged by. What is missing in the cache is encoded.

    examples: of the training images, which are encoded already.
    """

    def battery(encoded: Encoded, split: Split, items: int) -> Battery:
        return make_battery(
            encoded,
            split.weights,
            plan.diffusion,
            plan.levels,
            cfg.validation.seed,
            items,
            identity={
                "images": split.fingerprint,
                "autoencoder": hash_of(*model.image_content, memory=Path(cfg.cache_dir).expanduser() / "hashes"),
            },
        )

    def on_training_images(items: int) -> Battery:
        assert isinstance(data.train, Split)
        assert isinstance(examples, Examples)
        return of_fold(of_training_images(battery(examples.encoded, data.train, items)), data.fold)

    def on_held_out_images(split: Split, items: int) -> Battery:
        return battery(encode(split, model, cfg.cache_dir), split, items)

    if cfg.validation.images == "train" or data.why_none:
        batteries = {TRAIN: on_training_images(cfg.validation["items"])}
    else:
        batteries = {HELD_OUT: of_fold(on_held_out_images(data.validation, cfg.validation["items"]), data.fold)}
    if cfg.validation.train_items:
        batteries[TRAIN] = on_training_images(cfg.validation.train_items)
    if reference is not None:
        batteries[REFERENCE] = on_held_out_images(reference, cfg.validation.reference_items)
    return batteries


def battery_facts(batteries: dict[str, Battery]) -> dict[str, Any]:
    """What run.json says of them."""
    first, *others = batteries
    names = {TRAIN: "train_battery", REFERENCE: "reference_battery"}
    return {"battery": batteries[first].facts, **{names[name]: batteries[name].facts for name in others}}
