"""Adapters of peft in the networks of a model."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import nn

from t2i.config import ConfigError
from t2i.models.layer_choice import CLIP, Words, choose_layers, refuse_unfitting
from t2i.models.lora_reading import kind_in, read_lora
from t2i.models.model import Model
from t2i.models.new_tokens import NewTokens
from t2i.models.peft_layers import add_layers, inject
from t2i.models.trained_text import TextTrained, freeze_unused

log = logging.getLogger(__name__)


class Settings(Protocol):
    """What is read from the settings of an adapter."""

    kind: ClassVar[str]

    @property
    def dropout(self) -> float: ...

    @property
    def target_modules(self) -> Sequence[str] | str: ...

    @property
    def layer_names(self) -> Words | None: ...

    @property
    def text_encoder(self) -> bool: ...

    @property
    def text_modules(self) -> Sequence[str] | str: ...

    @property
    def patterns(self) -> Mapping[str, Mapping[str, float]]:
        """Values of single layers, by setting and by the ends of the layers' names."""
        ...

    def check(self, layers: Mapping[str, nn.Module]) -> None:
        """Refuse layers that can't be adapted so."""
        ...

    def config(self, layers: Sequence[str]) -> Any:
        """peft's configuration for layers of these names."""
        ...


def adapt(model: Model, settings: Settings, autocast: Callable[[Callable], Callable] | None) -> Model:
    """Freeze a model and add adapters to it; returns the model to train. autocast: see `Adapter.attach`."""
    words, setting, of_text = settings.layer_names or {}, "adapter.target_modules", "adapter.text_modules"
    chosen = [(model.denoiser, choose_layers(model.denoiser, settings.target_modules, words, setting), setting)]
    for encoder in model.text_encoders.values() if settings.text_encoder else ():
        chosen.append((encoder, choose_layers(encoder, settings.text_modules, CLIP, of_text), of_text))
    for name, patterns in settings.patterns.items():
        refuse_unfitting(patterns, [layer for _, layers, _ in chosen for layer in layers], f"adapter.{name}")
    for network, layers, wanted in chosen:
        settings.check({name: network.get_submodule(name) for name in layers})
        inject(network, settings.config(layers), wanted)
    return with_trained_text(model, autocast) if settings.text_encoder else model


def continue_from(
    file: Path, model: Model, settings: Settings, autocast: Callable[[Callable], Callable] | None
) -> Model:
    """As `adapt`, with the adapters of a file; layers, ranks and alphas are those of the file."""
    networks = {"denoiser": model.denoiser, **model.text_encoders}
    found = read_lora(file, networks)
    if (kind := kind_in(found)) != settings.kind:
        raise ConfigError(f"adapter.path={file} holds {kind}, and not {settings.kind}; use adapter={kind}")
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
    scales = sorted({layer.scale for layers in found.values() for layer in layers.values()})
    log.info(
        "goes on from %s: rank %s, alpha / rank %s (those of the file, whatever adapter.rank, alpha and layers say)",
        *(file, ", ".join(map(str, ranks)), ", ".join(f"{scale:g}" for scale in scales)),
    )
    return with_trained_text(model, autocast) if in_text else model


def with_trained_text(
    model: Model, autocast: Callable[[Callable], Callable] | None, words: NewTokens | None = None
) -> Model:
    """The model whose text encoders are trained together with the denoiser. words: new ones, in captions."""
    freeze_unused(model)
    if autocast:  # accelerate wraps only the network that is trained, but a pipeline calls its networks one by one
        for network in (model.denoiser, *model.text_encoders.values()):
            network.forward = autocast(network.forward)
    return TextTrained(model, words or NewTokens())
