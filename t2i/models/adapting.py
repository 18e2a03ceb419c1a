"""Adapters of peft in the networks of a model."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from t2i.config import ConfigError
from t2i.models.lora_reading import read_lora
from t2i.models.model import Model
from t2i.models.peft_layers import add_layers, inject
from t2i.models.trained_text import TextTrained, freeze_unused

log = logging.getLogger(__name__)


class Settings(Protocol):
    """What continuing takes from the settings of a LoRA; layers, ranks and alphas are those of the file."""

    @property
    def dropout(self) -> float: ...

    @property
    def text_encoder(self) -> bool: ...


def adapt(
    model: Model,
    config: Callable[[Sequence[str]], Any],
    names: Mapping[str, Sequence[str]],
    text_encoder: bool,
    autocast: Callable[[Callable], Callable] | None,
) -> Model:
    """Freeze a model and add adapters to it; returns the model to train.

    config: peft's configuration for layers of such names. names: the ends of the layers' names in the `denoiser` and in
    the `text_encoders`. autocast: see `Adapter.attach`.
    """
    inject(model.denoiser, config(names["denoiser"]), f"adapter.target_modules={names['denoiser']}")
    if not text_encoder:
        return model
    for encoder in model.text_encoders.values():
        inject(encoder, config(names["text_encoders"]), f"adapter.text_modules={names['text_encoders']}")
    return _with_trained_text(model, autocast)


def continue_from(
    file: Path, model: Model, settings: Settings, autocast: Callable[[Callable], Callable] | None
) -> Model:
    """As `adapt`, with the adapters of a file."""
    networks = {"denoiser": model.denoiser, **model.text_encoders}
    found = read_lora(file, networks)
    in_text = [part for part in found if part != "denoiser"]
    if in_text and not settings.text_encoder:
        raise ConfigError(
            f"adapter.path={file} holds adapters of {' and '.join(in_text)}, too; to train them as well, use "
            "adapter.text_encoder=true"
        )
    if settings.text_encoder and not in_text:
        raise ConfigError(
            f"adapter.path={file} holds no adapters of text encoders; use adapter.text_encoder=false, or another file"
        )
    for part in ("denoiser", *(model.text_encoders if in_text else ())):
        networks[part].requires_grad_(False)
    for part, layers in found.items():
        add_layers(networks[part], layers, f"adapter.path={file}", settings.dropout)
    ranks = sorted({layer.rank for layers in found.values() for layer in layers.values()})
    alphas = sorted({layer.alpha for layers in found.values() for layer in layers.values()})
    log.info(
        "goes on from %s: rank %s, alpha %s (those of the file, whatever adapter.rank, alpha and layers say)",
        *(file, ", ".join(map(str, ranks)), ", ".join(f"{alpha:g}" for alpha in alphas)),
    )
    return _with_trained_text(model, autocast) if in_text else model


def _with_trained_text(model: Model, autocast: Callable[[Callable], Callable] | None) -> Model:
    freeze_unused(model)
    if autocast:  # accelerate wraps only the network that is trained, but a pipeline calls its networks one by one
        for network in (model.denoiser, *model.text_encoders.values()):
            network.forward = autocast(network.forward)
    return TextTrained(model)
