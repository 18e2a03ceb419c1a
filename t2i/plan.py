"""The components that cost nothing to build: with them, every contradiction in a configuration has been found.

Imports no more than torch and Diffusers' schedulers, so that a mistake is answered in two seconds.
"""

import copy
from dataclasses import dataclass
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig

from t2i.adapters import LoRA, NoAdapter
from t2i.components import build, check_signature, check_targets, rehearse
from t2i.config import ConfigError
from t2i.diffusion import Diffusion
from t2i.ema import EMA, NoEMA
from t2i.losses import Weighting
from t2i.precision import Precision, resolve_attention, resolve_precision
from t2i.timesteps import Distribution
from t2i.tracking import Tracker


@dataclass(frozen=True)
class Plan:
    precision: Precision
    attention: str  # sdpa, math, by_size or xformers
    loss: Weighting
    timesteps: Distribution
    ema: EMA | NoEMA
    adapter: NoAdapter | LoRA
    tracker: Tracker
    scheduler: Any  # of Diffusers
    diffusion: Diffusion


def settle(cfg: DictConfig) -> Plan:
    """Build what is cheap, cheapest first, and refuse what can't work."""
    check_targets(cfg)
    precision = resolve_precision(**cfg.precision)
    attention = resolve_attention(cfg.attention, precision.dtype)
    for group in ("error", "loss", "timesteps", "ema", "adapter", "tracker", "scheduler"):
        check_signature(cfg, group)
    loss, timesteps, ema, adapter, tracker, scheduler = (
        build(cfg, group) for group in ("loss", "timesteps", "ema", "adapter", "tracker", "scheduler")
    )
    if adapter.needs_pretrained and not cfg.model.pretrained:
        raise ConfigError("model.pretrained=false leaves nothing to adapt; use adapter=none, or pretrained weights")
    diffusion = Diffusion.from_scheduler(scheduler)
    try:
        copy.deepcopy(scheduler).set_timesteps(2)
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(f"scheduler: it can't sample ({error})") from error
    loss.prepare(diffusion, timesteps.probabilities(len(diffusion)))
    return Plan(precision, attention, loss, timesteps, ema, adapter, tracker, scheduler, diffusion)


def check_the_rest(cfg: DictConfig) -> None:
    """Refuse settings that data set, model or optimizer do not take, before any of them is loaded."""
    for group in ("optimizer", "lr_scheduler", "dataset", "model"):
        check_signature(cfg, group)
    optimizer = get_object(cfg.optimizer._target_)
    rounds = getattr(optimizer, "rounds_stochastically", False) or cfg.optimizer.get("bf16_stochastic_round")
    if cfg.precision.weights == "stochastic" and not rounds:
        raise ConfigError(
            f"precision.weights=stochastic: {cfg.optimizer._target_} rounds to the nearest, which loses small updates; "
            "use optimizer=adamw_sr, or precision=bf16"
        )
    rehearse(cfg)
