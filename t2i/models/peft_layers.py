"""Adapters of peft in the layers of a network, which stays whole: Diffusers and Transformers know it as before."""

from typing import Any

import torch
from torch import nn

from t2i.config import ConfigError
from t2i.models.adapter_kinds import KINDS, Factors
from t2i.models.low_rank import AnyLayers, LowRank, lora_layers

OFF_THE_BASE = ("pissa", "olora")  # initial values that are subtracted from the base, so that training starts at it


def inject(network: Any, config: Any, setting: str) -> None:
    """Freeze a network and add adapters to it. config: of peft. setting: by which their layers were chosen."""
    if not hasattr(network, "add_adapter"):
        raise ConfigError(f"adapter: Diffusers has no adapters for a {type(network).__name__}; use adapter=none")
    network.requires_grad_(False)
    init = getattr(config, "init_lora_weights", None)
    if init in OFF_THE_BASE and any(not weight.is_floating_point() for weight in network.parameters()):
        raise ConfigError(f"adapter.init={init} changes the base, which model.quantize holds in few bits; use kaiming")
    try:
        network.add_adapter(config)
    except (ValueError, TypeError, NotImplementedError) as error:
        if init in OFF_THE_BASE and init in str(error):
            raise ConfigError(f"adapter.init={init} works on linear layers only; leave convolutions out") from error
        raise ConfigError(f"{setting}: peft can't adapt a layer so ({error}); choose other layers or sizes") from error
    for weight in network.parameters():
        if weight.requires_grad:  # peft makes them in the type of the base
            weight.data = weight.data.float()
    if init in OFF_THE_BASE:
        _note_initial_values(network)
    _scale_as_files_do(network)


def _scale_as_files_do(network: nn.Module) -> None:
    """peft scales two complete factors of LoKr, which have no rank; no other tool does."""
    for module in network.modules():
        for kind in KINDS:
            if kind.scaled and isinstance(module, kind.layer()):
                layer: Any = module
                layer.scaling["default"] = kind.of(layer).scale


def _note_initial_values(network: nn.Module) -> None:
    """For the export, which holds the difference to the original base."""
    for layer in lora_layers(network).values():
        matrices = (layer.lora_A, layer.lora_B)
        layer.taken_off_the_base = tuple(each["default"].weight.detach().clone() for each in matrices)


def add_layers(network: Any, layers: AnyLayers, setting: str, dropout: float = 0.0) -> None:
    """Add the adapters of a file. setting: by which it was chosen."""
    try:
        config = _config_of(layers, dropout)
    except LookupError as error:  # some of the factors of a layer
        raise ConfigError(f"{setting}: its adapters are incomplete ({error}); use another file") from error
    inject(network, config, setting)
    modules = dict(network.named_modules())
    for name, layer in layers.items():
        try:
            with torch.no_grad():
                layer.put(modules[name])
        except (RuntimeError, LookupError) as error:  # of another shape, or incomplete
            raise ConfigError(
                f"{setting} is for another model: its adapter of {name} does not fit the layer of this one ({error})"
            ) from error


def _config_of(layers: AnyLayers, dropout: float) -> Any:
    """peft's configuration of exactly these layers."""
    from peft import LoraConfig

    if others := {name: layer for name, layer in layers.items() if isinstance(layer, Factors)}:
        return next(iter(others.values())).kind.config(others, dropout)
    lora = {name: layer for name, layer in layers.items() if isinstance(layer, LowRank)}
    first = next(iter(lora.values()))
    alpha: Any = first.alpha
    return LoraConfig(
        r=first.rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        use_dora=first.magnitude is not None,
        rank_pattern={name: layer.rank for name, layer in lora.items()},
        alpha_pattern={name: layer.alpha for name, layer in lora.items()},
        target_modules=list(lora),
    )
