"""The LoRA adapter of a layer, as peft trains it and as files hold it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from t2i.models.adapter_kinds import KINDS, Factors


@dataclass(frozen=True)
class LowRank:
    """The adapter of a layer: W + alpha / rank · up · down, and the length of W's rows if it is a DoRA."""

    down: Tensor  # [rank, in], or [rank, in, height, width] of a convolution
    up: Tensor  # [out, rank], or [out, rank, 1, 1]
    alpha: float
    magnitude: Tensor | None = None  # [out], or [1, out, 1, 1]

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """What up · down is multiplied with."""
        return self.alpha / self.rank

    def in_diffusers(self) -> dict[str, Tensor]:
        """By the names in files of Diffusers, with alpha / rank in the weights: few tools look for an alpha there."""
        weights = {"lora_A.weight": self.down, "lora_B.weight": self.up * self.scale}
        return weights | ({} if self.magnitude is None else {"lora_magnitude_vector": self.magnitude})

    def in_peft(self) -> dict[str, Tensor]:
        """By the names under which peft trains them."""
        weights = {"lora_A.default.weight": self.down, "lora_B.default.weight": self.up}
        return weights | ({} if self.magnitude is None else {"lora_magnitude_vector.default.weight": self.magnitude})

    def put(self, module: Any) -> None:
        """Become the adapter of a layer of peft. Raises RuntimeError where that has another shape."""
        down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
        down.copy_(self.down.reshape(down.shape))  # a linear layer of some files is a convolution in others
        up.copy_(self.up.reshape(up.shape))
        if self.magnitude is not None:
            magnitude = module.lora_magnitude_vector["default"].weight
            magnitude.copy_(self.magnitude.reshape(magnitude.shape))


Layers = dict[str, LowRank]  # by the name of the layer in its network
AnyLayers = Mapping[str, LowRank] | Mapping[str, Factors]  # of one kind


def lora_layers(network: nn.Module) -> dict[str, Any]:
    """The layers of a network that have LoRA matrices, by their names."""
    from peft.tuners.lora import LoraLayer

    return {name: layer for name, layer in network.named_modules() if isinstance(layer, LoraLayer)}


def low_rank(network: nn.Module) -> Layers:
    """The LoRA adapters of a network, without their initial value where that was taken off the base."""
    layers = {}
    for name, layer in lora_layers(network).items():
        down, up = (matrices["default"].weight.detach() for matrices in (layer.lora_A, layer.lora_B))
        if (initial := getattr(layer, "taken_off_the_base", None)) is not None:
            down, up = torch.cat([down, initial[0].to(down)]), torch.cat([up, -initial[1].to(up)], dim=1)
        magnitudes = layer.lora_magnitude_vector
        magnitude = magnitudes["default"].weight.detach() if "default" in magnitudes else None
        layers[name] = LowRank(down, up, layer.scaling["default"] * down.shape[0], magnitude)
    return layers


def factors(network: nn.Module) -> dict[str, Factors]:
    """The adapters of other kinds in a network."""
    classes = {kind.layer(): kind for kind in KINDS}
    modules = {name: module for name, module in network.named_modules() if isinstance(module, tuple(classes))}
    return {
        name: next(kind for layer, kind in classes.items() if isinstance(module, layer)).of(module)
        for name, module in modules.items()
    }


def adapters(network: nn.Module) -> AnyLayers:
    """The adapters of a network, whichever kind they are of."""
    return low_rank(network) or factors(network)
