"""Copies of tensors in the host's memory, all asked for at once: a GPU is waited for once, not for each tensor."""

from typing import Any

import torch
from torch import Tensor

BLOCK = 2**28  # bytes that are page-locked at a time: PyTorch would round the size of each tensor up to a power of two
ALIGNED = 512  # bytes


class HostCopies:
    """Copies the tensors in trees of dicts, lists and tuples to the host.

    What is on a GPU is copied in the order of its stream, while the host goes on: `wait` before the copies are read.
    They lie in page-locked memory where there is enough of it. `reuse` gives their memory to the next copies.
    """

    def __init__(self) -> None:
        self.blocks: list[Tensor] = []
        self.copied: Any = None  # the event on the GPU's stream after which the copies are complete
        self.reuse()

    def reuse(self) -> None:
        self.block = self.used = 0

    def of(self, tree: Any, clone: bool) -> Any:
        """The tree with its tensors on the host. clone: copy those that are there already, too."""
        copy = self._copy(tree, clone)
        if self.copied is not None:
            self.copied.record()
        return copy

    def wait(self) -> None:
        if self.copied is not None:
            self.copied.synchronize()

    def _copy(self, tree: Any, clone: bool) -> Any:
        if isinstance(tree, dict):
            return {key: self._copy(value, clone) for key, value in tree.items()}
        if isinstance(tree, list | tuple):
            return type(tree)(self._copy(value, clone) for value in tree)
        if not isinstance(tree, Tensor):
            return tree
        tensor = tree.detach()
        if tensor.device.type == "cpu":
            return tensor.clone() if clone else tensor
        if not tensor.numel():
            return torch.empty_like(tensor, device="cpu")
        if tensor.device.type == "cuda" and self.copied is None:
            self.copied = torch.cuda.Event()
        return self._room(tensor).copy_(tensor, non_blocking=True)

    def _room(self, tensor: Tensor) -> Tensor:
        """Memory for a copy of a tensor, whose elements lie there in the same order."""
        size = tensor.numel() * tensor.element_size()
        if self.block == len(self.blocks) or self.used + size > len(self.blocks[self.block]):
            self.block, self.used = (self.block + 1, 0) if self.used else (self.block, 0)
            if self.block == len(self.blocks) or size > len(self.blocks[self.block]):
                self.blocks.insert(self.block, _page_locked(max(BLOCK, size), tensor.device))
        # A tensor with a storage of its own: torch.save writes complete storages.
        flat = torch.from_numpy(self.blocks[self.block].numpy()[self.used : self.used + size]).view(tensor.dtype)
        self.used += -(-size // ALIGNED) * ALIGNED
        if torch.ops.aten.is_non_overlapping_and_dense(tensor):
            return flat.as_strided(tensor.shape, tensor.stride())
        return flat.view(tensor.shape)


def _page_locked(size: int, device: torch.device) -> Tensor:
    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    except RuntimeError:  # not so much of it, or no driver: the copy is slower, and waits for each tensor
        return torch.empty(size, dtype=torch.uint8)
