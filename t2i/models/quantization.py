"""Bases that are held in 4 or 8 bits under adapters (QLoRA: Dettmers et al. 2023, arXiv 2305.14314)."""

import importlib.util
import math

from torch import Tensor, nn

from t2i.config import ConfigError

KINDS = ("nf4", "int8")


def check_quantize(quantize: str | None, pretrained: bool) -> None:
    """ConfigError if a base can't be quantised so here."""
    if quantize is None:
        return
    if quantize not in KINDS:
        raise ConfigError(f"model.quantize={quantize} is not known; choose from {', '.join(KINDS)}, or null for none")
    if not pretrained:
        raise ConfigError(
            f"model.quantize={quantize} is for weights that are read, and model.pretrained=false draws them; use null"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(f"model.quantize={quantize} needs the package bitsandbytes; pip install 't2i[quantize]'")


def held_bytes(weight: Tensor, quantize: str) -> int:
    """What the weights of a linear layer, [out, in], take when they are quantised, scales and tables included."""
    if quantize == "int8":
        return weight.numel() + 4 * len(weight)  # a scale of each output in float32
    blocks = math.ceil(weight.numel() / 64)
    scales = blocks + 4 * math.ceil(blocks / 256) + 4  # in 8 bits, which have scales of their own and a mean
    return math.ceil(weight.numel() / 2) + scales + 4 * (16 + 256)  # the values that the codes stand for


def count_parameters(network: nn.Module) -> int:
    """The number of parameters. In 4 bits, two share a byte, but are counted as two."""
    held = [getattr(weight, "quant_state", None) or weight for weight in network.parameters()]
    return sum(each.shape.numel() for each in held)
