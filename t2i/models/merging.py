"""The weights of a network with its adapters merged."""

from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def merged_weights(network: nn.Module) -> dict[str, Tensor]:
    """What the state of a network would be if it had been trained without adapters; the network stays as it is."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted: dict[str, Any] = {name: part for name, part in network.named_modules() if isinstance(part, BaseTunerLayer)}
    state = {}
    for name, value in network.state_dict().items():
        layer = next((layer for layer in adapted if name.startswith(f"{layer}.")), None)
        if layer is None:
            state[name] = value
        elif name.startswith(f"{layer}.base_layer."):
            state[name.replace(".base_layer.", ".")] = value
    for name, layer in adapted.items():
        state[f"{name}.weight"] = _merged(layer)
    return state


def _merged(layer: Any) -> Tensor:
    weight = layer.get_base_layer().weight
    before = weight.detach().clone()
    layer.merge()
    merged = weight.detach().clone()
    weight.data.copy_(before)  # unmerging would round
    layer.merged_adapters.clear()
    return merged
