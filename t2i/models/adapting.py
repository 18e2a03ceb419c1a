"""Adapters of peft in the networks of a model."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from t2i.config import ConfigError
from t2i.models.lora_files import Layers, LowRank, lora_layers
from t2i.models.lora_reading import read_lora
from t2i.models.model import Model
from t2i.models.trained_text import TextTrained, freeze_unused

log = logging.getLogger(__name__)

OFF_THE_BASE = ("pissa", "olora")  # initial values that are subtracted from the base, so that training starts at it


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
    _inject(model.denoiser, config(names["denoiser"]), f"adapter.target_modules={names['denoiser']}")
    if not text_encoder:
        return model
    for encoder in model.text_encoders.values():
        _inject(encoder, config(names["text_encoders"]), f"adapter.text_modules={names['text_encoders']}")
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
        _inject(networks[part], _config_of(layers, settings.dropout), f"adapter.path={file}")
        _fill(networks[part], layers)
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


def _inject(network: Any, config: Any, setting: str) -> None:
    if not hasattr(network, "add_adapter"):
        raise ConfigError(f"adapter: Diffusers has no adapters for a {type(network).__name__}; use adapter=none")
    network.requires_grad_(False)
    init = getattr(config, "init_lora_weights", None)
    if init in OFF_THE_BASE and any(not weight.is_floating_point() for weight in network.parameters()):
        raise ConfigError(f"adapter.init={init} changes the base, which model.quantize holds in few bits; use kaiming")
    try:
        network.add_adapter(config)
    except ValueError as error:
        if init in OFF_THE_BASE and init in str(error):
            raise ConfigError(f"adapter.init={init} works on linear layers only; leave convolutions out") from error
        raise ConfigError(
            f"{setting} can't be adapted ({error}); give the ends of layer names, such as to_q or "
            "conv1 in a denoiser, q_proj in a text encoder"
        ) from error
    for weight in network.parameters():
        if weight.requires_grad:  # peft makes them in the type of the base
            weight.data = weight.data.float()
    if init in OFF_THE_BASE:
        _note_initial_values(network)


def _note_initial_values(network: nn.Module) -> None:
    """For the export, which holds the difference to the original base."""
    for layer in lora_layers(network).values():
        matrices = (layer.lora_A, layer.lora_B)
        layer.taken_off_the_base = tuple(each["default"].weight.detach().clone() for each in matrices)


def _config_of(layers: Layers, dropout: float) -> Any:
    """peft's configuration of exactly these layers."""
    from peft import LoraConfig

    first = next(iter(layers.values()))
    alpha: Any = first.alpha
    return LoraConfig(
        r=first.rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        use_dora=first.magnitude is not None,
        rank_pattern={name: layer.rank for name, layer in layers.items()},
        alpha_pattern={name: layer.alpha for name, layer in layers.items()},
        target_modules=list(layers),
    )


@torch.no_grad()
def _fill(network: nn.Module, layers: Layers) -> None:
    modules = dict(network.named_modules())
    for name, layer in layers.items():
        _fill_layer(modules[name], layer)


def _fill_layer(module: Any, layer: LowRank) -> None:
    down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
    down.copy_(layer.down.reshape(down.shape))  # a linear layer of some files is a convolution in others
    up.copy_(layer.up.reshape(up.shape))
    if layer.magnitude is not None:
        magnitude = module.lora_magnitude_vector["default"].weight
        magnitude.copy_(layer.magnitude.reshape(magnitude.shape))
