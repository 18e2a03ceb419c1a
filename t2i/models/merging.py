"""The weights of a network with its adapters merged."""

from typing import Any

import torch
from torch import Tensor, nn

from t2i.models.low_rank import AnyLayers
from t2i.models.peft_layers import add_layers


@torch.no_grad()
def merged_weights(network: nn.Module) -> dict[str, Tensor]:
    """What the state of a network would be if it had been trained without adapters; the network stays as it is."""
    adapted, state = _adapted(network), {}
    for name, value in network.state_dict().items():
        layer = next((layer for layer in adapted if name.startswith(f"{layer}.")), None)
        if layer is None:
            state[name] = value
        elif name.startswith(f"{layer}.base_layer."):
            state[name.replace(".base_layer.", ".")] = value
    for name, layer in adapted.items():
        state[f"{name}.weight"] = _merged(layer)
    return state


@torch.no_grad()
def merge_into(network: Any, layers: AnyLayers, scale: float, setting: str) -> None:
    """Change the weights of a network for good: to W + scale · (W' − W), of which W' is W with the adapter.

    That is computed in float32, and rounded once to the type of the weights. setting: by which the adapters were
    chosen, for messages.
    """
    add_layers(network, layers, setting)
    for name, layer in _adapted(network).items():
        base = layer.get_base_layer()
        before = base.weight.detach()
        base.weight = nn.Parameter(before.float(), requires_grad=False)
        merged = _merged(layer)
        if scale != 1:
            merged = before.float() + scale * (merged - before.float())
        base.weight = nn.Parameter(merged.to(before.dtype), requires_grad=False)
        network.set_submodule(name, base)
    del network.peft_config
    network._hf_peft_config_loaded = False


def _adapted(network: nn.Module) -> dict[str, Any]:
    """The layers that have adapters, by their names."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: part for name, part in network.named_modules() if isinstance(part, BaseTunerLayer)}


def _merged(layer: Any) -> Tensor:
    weight = layer.get_base_layer().weight
    before = weight.detach().clone()
    layer.merge()
    merged = layer.get_base_layer().weight.detach().clone()
    layer.get_base_layer().weight.data.copy_(before)  # unmerging would round
    layer.merged_adapters.clear()
    return merged
