"""What quantising the base costs: the battery's errors of the quantised base against those of the one that it was."""

import gc
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from omegaconf import DictConfig

from t2i.comparison.significance import difference
from t2i.config import ConfigError
from t2i.config.out_of_memory import lacking
from t2i.data.cache_files import locked, publishing, warn_of_damage
from t2i.data.fingerprints import hash_of
from t2i.distributed import processes
from t2i.evaluation.battery import Battery, evaluating, summary
from t2i.experiment.plan import Plan
from t2i.models.model import Model
from t2i.optim.trained_weights import hold_weights
from t2i.runs.errors_file import read_errors, write_errors

log = logging.getLogger(__name__)


def cache_file(cfg: DictConfig, plan: Plan, model: Model, battery: Battery) -> Path:
    """Where the errors of the unquantised base are stored, by everything that determines them. plan: of the model."""
    cache = Path(cfg.cache_dir).expanduser()
    facts = {
        "model": {key: value for key, value in cfg.model.items() if key != "quantize"},
        "scheduler": [type(plan.scheduler).__name__, dict(plan.scheduler.config), cfg.continuous_time],
        "dtype": plan.precision.dtype,
        "battery": battery.hash,
    }
    content = [*model.denoiser_content, *model.text_content, json.dumps(facts, sort_keys=True, default=str)]
    return cache / "unquantized" / f"{hash_of(*content, memory=cache / 'hashes')}.parquet"


def unquantized_errors(
    load: Callable[[], Model], file: Path, plan: Plan, battery: Battery, accelerator: Accelerator
) -> np.ndarray:
    """The battery's errors of the base before it was quantised, [N, K], measured once for all runs with this cache.

    load: reads the model with that base, and adapters that have no effect yet. It is freed before this returns. file:
    see `cache_file`. ConfigError if it does not fit into memory.
    """
    (errors,) = gather_object([_read(file)])[:1]  # every process takes what the first one found
    if errors is not None:
        return errors
    log.info("The unquantised base is measured, once, to tell what quantising costs ...")
    try:
        errors = _measure(load(), plan, battery, accelerator)
    except (RuntimeError, MemoryError) as error:
        if not lacking(error):
            raise
        raise ConfigError(
            f"the unquantised base does not fit into memory ({str(error).splitlines()[0]}); with "
            "validation.quantization_cost=false it is not read, and what quantising costs is not measured"
        ) from error
    gc.collect()
    torch.cuda.empty_cache()
    if accelerator.is_main_process:
        _write(file, battery, errors)
    return errors


def _measure(model: Model, plan: Plan, battery: Battery, accelerator: Accelerator) -> np.ndarray:
    hold_weights(model.denoiser, plan.precision)
    model.denoiser.to(accelerator.device)
    model.denoiser.forward = processes.autocast(accelerator)(model.denoiser.forward)
    with evaluating(model.denoiser):
        return battery.errors(model, plan.diffusion, accelerator)


def _read(file: Path) -> np.ndarray | None:
    if not file.is_file():
        return None
    try:
        return read_errors(file)[""]
    except ConfigError:
        warn_of_damage(file, "it holds no errors")
        return None


def _write(file: Path, battery: Battery, errors: np.ndarray) -> None:
    temporary = file.with_suffix(".tmp")
    with locked(file), publishing(temporary, file):
        write_errors(temporary, battery.levels.name, battery.levels.values, {"": errors})


def quantization_cost(quantize: str, base: np.ndarray, quantized: np.ndarray, battery: Battery, plan: Plan) -> dict:
    """What run.json says of it: val/loss of the base before and after, and the relative difference.

    base, quantized: the battery's errors, [N, K]. The difference comes with its 95 % interval over the images, paired;
    without one if they are too few, or not all finite.
    """
    snr, to_v = battery.levels.snr(plan.diffusion), battery.levels.to_v(plan.diffusion)
    before, after = (summary(errors, snr, to_v)["loss"] for errors in (base, quantized))
    cost = {"quantize": quantize, "before": before, "after": after}
    try:
        change = difference(quantized[None], base[None])
    except ConfigError:
        return cost
    return cost | {"change": change.estimate, "interval": [change.low, change.high]}


def sentence(cost: dict) -> str:
    """quantising to nf4 raised val/loss of the base from 0.12340 to 0.12510 (+1.38 % [+1.01, +1.75])"""
    before, after = cost["before"], cost["after"]
    verb = "lowered" if after < before else "raised"
    text = f"quantising to {cost['quantize']} {verb} val/loss of the base from {before:.5f} to {after:.5f}"
    if "change" not in cost:
        return text
    change, low, high = (f"{100 * part:+.2f}".replace("-", "−") for part in (cost["change"], *cost["interval"]))
    return f"{text} ({change} % [{low}, {high}])"
