"""Adapters of peft in the layers of a network, which stays whole: Diffusers and Transformers know it as before."""

from typing import Any

import torch
from torch import nn

from t2i.config import ConfigError
from t2i.models.lora_files import Layers, LowRank, lora_layers

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


def add_layers(network: Any, layers: Layers, setting: str, dropout: float = 0.0) -> None:
    """Add the adapters of a file. setting: by which it was chosen."""
    inject(network, _config_of(layers, dropout), setting)
    _fill(network, layers, setting)


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
def _fill(network: nn.Module, layers: Layers, setting: str) -> None:
    modules = dict(network.named_modules())
    for name, layer in layers.items():
        try:
            _fill_layer(modules[name], layer)
        except RuntimeError as error:  # of another shape
            raise ConfigError(
                f"{setting} is for another model: its adapter of {name} does not fit the layer of this one ({error})"
            ) from error


def _fill_layer(module: Any, layer: LowRank) -> None:
    down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
    down.copy_(layer.down.reshape(down.shape))  # a linear layer of some files is a convolution in others
    up.copy_(layer.up.reshape(up.shape))
    if layer.magnitude is not None:
        magnitude = module.lora_magnitude_vector["default"].weight
        magnitude.copy_(layer.magnitude.reshape(magnitude.shape))
