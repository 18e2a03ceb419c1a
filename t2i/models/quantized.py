"""Networks whose linear layers hold frozen weights in 4 or 8 bits, as bitsandbytes quantises them.

Their products are those of the dequantised weights, as of any other linear layer. The kernels of bitsandbytes round the
inputs as well, in a way that depends on what else is in the batch (Linear8bitLt's outliers) and, on a CPU, on whether
the layer is in training: an image's error would depend on the images next to it.
"""

import ctypes
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn

logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # about a kernel that is not used here
import bitsandbytes as bnb  # noqa: E402
import bitsandbytes.functional  # noqa: E402

log = logging.getLogger(__name__)
new_4bit: Any = bnb.nn.Params4bit  # whose parameters type checkers do not see
new_8bit: Any = bnb.nn.Int8Params


class Linear4bit(bnb.nn.Linear4bit):
    """NF4 in blocks of 64 with scales in 8 bits: 4.13 bits a weight."""

    @classmethod
    def like(cls, linear: nn.Linear) -> Self:
        """A layer of the same shape, without values."""
        return cls(linear.in_features, linear.out_features, linear.bias is not None, quant_type="nf4", device="meta")

    def quantize(self, weight: Tensor) -> None:
        """Take the weights, [out, in], and hold them on the CPU; they are quantised on the GPU if there is one."""
        packed, state = bnb.functional.quantize_4bit(weight.to(_device()), quant_type="nf4", compress_statistics=True)
        state.to("cpu")
        self.quant_state: Any = state
        self.weight = new_4bit(
            packed.cpu(), requires_grad=False, quant_state=state, quant_type="nf4", bnb_quantized=True, module=self
        )

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weights that the layer multiplies with, [out, in]."""
        return bnb.functional.dequantize_4bit(self.weight.data, self.quant_state).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return multiply(x, self)


class Linear8bitLt(bnb.nn.Linear8bitLt):
    """Integers from -127 to 127 with one scale for each output."""

    @classmethod
    def like(cls, linear: nn.Linear) -> Self:
        """A layer of the same shape, without values."""
        bias = linear.bias is not None
        return cls(linear.in_features, linear.out_features, bias, has_fp16_weights=False, device="meta")

    def quantize(self, weight: Tensor) -> None:
        """Take the weights, [out, in], and hold them on the CPU; they are quantised on the GPU if there is one."""
        integers, scale, _ = bnb.functional.int8_vectorwise_quant(weight.to(_device(), torch.float16))
        self.state.SCB = scale.cpu()
        self.weight = new_8bit(integers.cpu(), requires_grad=False, has_fp16_weights=False)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weights that the layer multiplies with, [out, in]."""
        scale: Any = self.state.SCB
        self.state.SCB = scale = scale.to(self.weight.device)  # moving the layer does not move it
        return self.weight.data.float().mul_(scale[:, None] / 127).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return multiply(x, self)


Quantized = Linear4bit | Linear8bitLt
LAYERS: dict[str, type[Quantized]] = {"nf4": Linear4bit, "int8": Linear8bitLt}
LOADED = {"nf4": "is_loaded_in_4bit", "int8": "is_loaded_in_8bit"}  # by what peft tells that a network is quantised


def multiply(x: Tensor, layer: Quantized) -> Tensor:
    """What nn.Linear computes with the dequantised weights, x being [..., in], under autocast or without."""
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    return _Product.apply(x, layer)


class _Product(torch.autograd.Function):
    """Dequantises the weights again in the backward pass: kept for it, they would fill the memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Quantized) -> Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return F.linear(x, layer.dequantized(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (gradient,) = grad_outputs
        return gradient @ ctx.layer.dequantized(gradient.dtype), None


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def read_quantized(
    kind: Any, config: Mapping[str, Any], files: Sequence[Path], dtype: torch.dtype, quantize: str
) -> nn.Module:
    """A network of Diffusers with quantised linear layers; all else is held in `dtype`.

    kind, config: its class and settings. files: its weights in safetensors, which are read one tensor at a time, so
    that at most one layer is in memory unquantised. Raises ValueError if they are not the network's.
    """
    with init_empty_weights():
        network: Any = kind.from_config(config)
    for name, module in list(network.named_modules()):
        if type(module) is nn.Linear:
            network.set_submodule(name, LAYERS[quantize].like(module))
    unread = set(network.state_dict())
    for file in files:
        with safe_open(file, framework="pt", backend="pread") as opened:  # a mapped file would stay in memory
            for name in opened.offset_keys():
                if name in unread:
                    _set(network, name, opened.get_tensor(name), dtype)
                    unread.remove(name)
                else:
                    log.warning("%s: the network has no %s, which is left out", file, name)
    if unread:
        raise ValueError(f"the files lack {len(unread)} weights of the network, such as {min(unread)}")
    setattr(network, LOADED[quantize], True)
    return network.eval().requires_grad_(False)


def _set(network: nn.Module, name: str, value: Tensor, dtype: torch.dtype) -> None:
    """Set a parameter or buffer to what a file holds."""
    owner, _, own_name = name.rpartition(".")
    module = network.get_submodule(owner)
    expected = getattr(module, own_name)
    if value.shape != expected.shape:
        raise ValueError(f"{name} has the shape {list(value.shape)} instead of {list(expected.shape)}")
    if isinstance(module, Quantized) and own_name == "weight":
        module.quantize(value.to(dtype))
        _return_freed()
        return
    value = value.to(dtype if value.is_floating_point() else value.dtype)
    setattr(module, own_name, nn.Parameter(value, requires_grad=False) if own_name in module._parameters else value)


def _return_freed() -> None:
    """Give the kernel the pages that quantising has freed between the layers that are kept; glibc would keep them."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "malloc_trim"):  # not in musl
        libc.malloc_trim(0)
