"""Says where values that came with an option of `model` are hardly what is wanted of this run."""

import logging
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from t2i.config import CONF

log = logging.getLogger(__name__)
SHOWN = 3  # prompts in the message
USUAL = 1e-4  # learning rate of adapters, in published examples and scripts


def say_what_samples_show(cfg: DictConfig) -> None:
    """Say that samples of own images would be drawn for prompts that came with the model's option."""
    dataset = cfg.dataset
    is_own = dataset.get("path") not in _shipped_paths() or dataset.get("sources")
    prompts = list(cfg.samples.prompts)
    if not (cfg.sample_every and is_own and prompts in _prompts_of_models()):
        return
    of = dataset.get("caption") or "photo of sks dog"
    log.warning(
        "samples are drawn for the prompts of the model's option (%s), not for your images; name your own, as in "
        "'samples.prompts=[\"%s\"]'",
        ", ".join(prompts[:SHOWN]) + (", ..." if len(prompts) > SHOWN else ""),
        of,
    )


def say_what_adapters_learn_with(cfg: DictConfig, chosen: str, typed: list[str]) -> None:
    """Say that adapters would be trained with the model's learning rate for all weights.

    chosen: the option of `model`. typed: the overrides.
    """
    trains_all = str(cfg.adapter.get("_target_")).endswith(".NoAdapter")
    if trains_all or any(override.lstrip("+").startswith(("optimizer.lr=", "experiment=")) for override in typed):
        return
    if isinstance(rate := cfg.optimizer.get("lr"), float) and rate < USUAL:
        log.warning(
            "optimizer.lr=%g is that of model=%s, for training all weights; adapters want about ten times as much, "
            "such as optimizer.lr=%g, and textual inversion more (5e-3)",
            rate,
            chosen,
            max(USUAL, 10 * rate),
        )


def _shipped_paths() -> set[str | None]:
    return {None, *(options.get("path") for options in _options("dataset"))} - {"???"}


def _prompts_of_models() -> list[list[str]]:
    return [options["samples"]["prompts"] for options in _options("model") if "prompts" in options.get("samples", {})]


def _options(group: str) -> list[dict[str, Any]]:
    """What the files of a group say, without what they take from others."""
    files = sorted((CONF / group).glob("**/*.yaml"))
    return [cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(file))) for file in files]
