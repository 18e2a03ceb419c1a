"""The devices of a process, what lies on which of them, and the way between PyTorch's tensors and JAX's arrays."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import torch
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from torch import Tensor

AXIS = "data"  # of the mesh: examples are divided along it, and with weights=sliced weights, too


class Devices:
    """Devices of this process, as one row."""

    def __init__(self, sliced: bool = False, devices: Sequence[Any] | None = None):
        """sliced: every device holds a part of each weight, of its moments and of its averages. devices: None: all."""
        self.mesh = Mesh(np.array(devices or jax.devices()), (AXIS,))
        self.sliced = sliced
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self.by_example = NamedSharding(self.mesh, PartitionSpec(AXIS))

    def __len__(self) -> int:
        return self.mesh.size

    def of_weight(self, shape: tuple[int, ...]) -> NamedSharding:
        """Where a weight of this shape lies: cut along its longest side that can be cut evenly, or on every device."""
        sides = [side for side, size in enumerate(shape) if size % len(self) == 0 and size > 0]
        if not self.sliced or not sides:
            return self.replicated
        longest = max(sides, key=lambda side: shape[side])
        return NamedSharding(
            self.mesh, PartitionSpec(*(AXIS if side == longest else None for side in range(len(shape))))
        )

    def put_weights(self, tensors: Mapping[str, Tensor]) -> dict[str, Array]:
        return {name: jax.device_put(to_numpy(each), self.of_weight(each.shape)) for name, each in tensors.items()}

    def put_examples(self, tensors: Mapping[str, Tensor]) -> dict[str, Array]:
        """Tensors [B, ...] of a batch, divided by examples; B must be a multiple of the number of devices."""
        return {name: jax.device_put(to_numpy(each), self.by_example) for name, each in tensors.items()}


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A copy: JAX may take the memory that it is given for its own."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16).copy()
    return tensor.numpy().copy()


def to_torch(array: Array) -> Tensor:
    """A copy in host memory; waits for the devices."""
    return torch.from_numpy(np.array(array, copy=True))


def keep_compiled(folder: Path) -> None:
    """Keep what is compiled in this folder, for later runs of the same shapes."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
