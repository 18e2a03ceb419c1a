"""Adapters that rotate: OFT and BOFT, which leave the angles between the neurons of a layer as they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from t2i.config import ConfigError, check_positive
from t2i.models.adapter_kinds import have_butterflies
from t2i.models.peft_adapter import PeftAdapter


@dataclass(kw_only=True)
class OFT(PeftAdapter):
    """W R, where R is a rotation made of blocks, each the Cayley transform of its angles.

    Qiu et al. 2023, arXiv 2306.07280. peft rotates the inputs; kohya's scripts and LyCORIS rotate the outputs, so that
    their files are others.
    """

    block_size: int  # inputs that are rotated among each other; more learn more, at its square in weights

    kind = "oft"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("adapter.block_size", self.block_size, "16 to 64 are common")

    def check(self, layers: Mapping[str, nn.Module]) -> None:
        check_rotated(self.kind, self.block_size, layers)

    def config(self, layers: Sequence[str]) -> Any:
        from peft import OFTConfig

        settings: dict[str, Any] = {"target_modules": list(layers), "module_dropout": self.dropout}
        return OFTConfig(r=0, oft_block_size=self.block_size, use_cayley_neumann=False, **settings)


@dataclass(kw_only=True)
class BOFT(PeftAdapter):
    """s · W R, where R is a product of sparse rotations, as a butterfly joins them (Liu et al. 2023, arXiv 2311.06243).

    peft multiplies complete matrices: a layer of n inputs needs n² numbers of memory for each factor, and time.
    """

    block_size: int  # inputs that one factor rotates among each other
    factors: int  # of the rotation: m of them join 2^(m − 1) blocks each; 1: block by block, as OFT

    kind = "boft"

    def check(self, layers: Mapping[str, nn.Module]) -> None:
        check_rotated(self.kind, self.block_size * 2 ** (self.factors - 1), layers)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("adapter.block_size", self.block_size, "4 and 8 are common")
        check_positive("adapter.factors", self.factors, "1 to 4 are common")

    def config(self, layers: Sequence[str]) -> Any:
        from peft import BOFTConfig

        have_butterflies()
        settings: dict[str, Any] = {"target_modules": list(layers), "boft_dropout": self.dropout}
        return BOFTConfig(boft_block_size=self.block_size, boft_n_butterfly_factor=self.factors, **settings)


def check_rotated(kind: str, block: int, layers: Mapping[str, nn.Module]) -> None:
    """Refuse layers whose inputs are no blocks of this size: peft would choose another, or rotate some twice."""
    for name, layer in layers.items():
        size: Any = getattr(layer, "in_features", None) or getattr(layer, "in_channels", None)
        kernel: Any = getattr(layer, "kernel_size", (1, 1))
        if size is None or tuple(kernel) != (1, 1):
            raise ConfigError(
                f"adapter={kind} works on linear layers and convolutions of 1 × 1, and {name} is none; leave it out of "
                "adapter.target_modules"
            )
        if size % block:
            raise ConfigError(
                f"adapter={kind}: blocks of {block} do not divide the {size} inputs of {name}; choose "
                "adapter.block_size anew, or leave it out of adapter.target_modules"
            )
