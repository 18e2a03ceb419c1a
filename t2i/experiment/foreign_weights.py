"""Weights of other tools that a run begins with: `from=` a LoRA file, or a pipeline."""

import copy
import logging
from pathlib import Path
from typing import Any

import torch

from t2i.config import ConfigError
from t2i.config.instantiate import build
from t2i.experiment.assembly import Experiment
from t2i.models.lora_reading import DENOISER, read_lora
from t2i.models.low_rank import AnyLayers

log = logging.getLogger(__name__)


def weights_of_tool(asked: str, experiment: Experiment) -> dict[str, torch.Tensor]:
    """The weights of a LoRA file, or of the denoiser of a pipeline."""
    cfg, model = experiment.cfg, experiment.model
    if not asked.endswith(".safetensors"):
        other = copy.deepcopy(cfg)
        other.model.path = asked
        log.info("of the pipeline %s the denoiser is taken; the other parts are those of model.path", asked)
        return {name: weight.detach() for name, weight in build(other, "model").denoiser.named_parameters()}
    if experiment.plan.adapter.trains_text:
        raise ConfigError(
            f"from={asked}: only the denoiser's adapters can be taken; use adapter.text_encoder=false and no new_tokens"
        )
    network: Any = getattr(model.denoiser, "module", model.denoiser)  # of several processes
    layers = read_lora(Path(asked), {DENOISER: network}, setting="from")[DENOISER]
    _check_scale(asked, layers, cfg.adapter.get("alpha", 1) / cfg.adapter.get("rank", 1))
    own = experiment.optimization.trained.weights
    return {
        name: weight.reshape(own[name].shape) if name in own and weight.numel() == own[name].numel() else weight
        for name, weight in _peft_weights(layers).items()
    }


def _peft_weights(layers: AnyLayers) -> dict[str, torch.Tensor]:
    """By the names under which peft trains them."""
    return {f"{name}.{weight}": value for name, layer in layers.items() for weight, value in layer.in_peft().items()}


def _check_scale(asked: str, layers: AnyLayers, scale: float) -> None:
    """Refuse adapters that would have an effect of another strength."""
    scales = {layer.scale for layer in layers.values()}
    if any(abs(value - scale) > 1e-6 * abs(scale) for value in scales):
        rank = next(iter(layers.values())).rank
        shown = ", ".join(f"{value:g}" for value in sorted(scales))
        raise ConfigError(
            f"from={asked}: its adapters are scaled by alpha / rank = {shown}, and those of this run by {scale:g}; use "
            f"adapter.alpha={max(scales) * rank:g} with adapter.rank={rank}"
        )
