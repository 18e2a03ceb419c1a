"""Copies from the host to a device that don't make the host wait for what the device has still to do."""

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; to a GPU it is copied from page-locked memory while the host goes on."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def with_float64(device: torch.device) -> torch.device:
    """The device, or the CPU in place of one that has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


class Uploaded:
    """A tensor of the host, with one copy in each type and on each device where it was asked for."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor
        self.copies: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
        """dtype: None means the tensor's own."""
        key = dtype or self.tensor.dtype, device
        if key not in self.copies:
            self.copies[key] = upload(self.tensor.to(key[0]), device)  # cast first: not every device has float64
        return self.copies[key]
