"""The devices of a run, what lies on which of them, and the way between PyTorch's tensors and JAX's arrays."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import torch
from jax import Array
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from torch import Tensor

from t2i.backends.jax.processes import join

AXIS = "data"  # of the mesh: examples are divided along it, and with weights=sliced weights, too


class Devices:
    """Devices as one row, those of a process side by side. Every process has to take part in what uses all of them."""

    def __init__(self, sliced: bool = False, devices: Sequence[Any] | None = None):
        """sliced: every device holds a part of each weight, of its moments and of its averages.

        devices: None: all of all processes.
        """
        row = devices or all_devices()
        self.mesh = Mesh(np.array(row), (AXIS,))
        self.sliced = sliced
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self.by_example = NamedSharding(self.mesh, PartitionSpec(AXIS))

    def __len__(self) -> int:
        return self.mesh.size

    @cached_property
    def own(self) -> "Devices":
        """Those of this process."""
        own = self.mesh.local_devices
        return self if len(own) == len(self) else Devices(self.sliced, own)

    def of_weight(self, shape: tuple[int, ...]) -> NamedSharding:
        """Where a weight of this shape lies: cut along its longest side that can be cut evenly, or on every device."""
        sides = [side for side, size in enumerate(shape) if size % len(self) == 0 and size > 0]
        if not self.sliced or not sides:
            return self.replicated
        longest = max(sides, key=lambda side: shape[side])
        return NamedSharding(
            self.mesh, PartitionSpec(*(AXIS if side == longest else None for side in range(len(shape))))
        )

    def put(self, values: np.ndarray, place: NamedSharding) -> Array:
        """An array of which every process has all values."""
        if self.own is self:
            return jax.device_put(values, place)
        return jax.make_array_from_callback(values.shape, place, lambda index: values[index])

    def put_weights(self, tensors: Mapping[str, Tensor]) -> dict[str, Array]:
        return {name: self.put(to_numpy(each), self.of_weight(each.shape)) for name, each in tensors.items()}

    def put_examples(self, tensors: Mapping[str, Tensor]) -> dict[str, Array]:
        """Tensors [B, ...], of each process its own, as batches of all, divided by examples.

        B must be a multiple of the number of this process's devices.
        """
        put = jax.make_array_from_process_local_data
        return {name: put(self.by_example, to_numpy(each)) for name, each in tensors.items()}

    def on_own(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """The same weights, complete on this process's devices. All processes must call it if weights are sliced."""
        if self.own is self:
            return dict(arrays)
        whole = complete(dict(arrays)) if self.sliced and arrays else arrays
        build, place = jax.make_array_from_single_device_arrays, self.own.replicated
        return {
            name: build(each.shape, place, [shard.data for shard in each.addressable_shards])
            for name, each in whole.items()
        }


def all_devices() -> list[Any]:
    """Those of all processes, process by process."""
    join()
    return sorted(jax.devices(), key=lambda each: (each.process_index, each.id))


def complete(arrays: Any) -> Any:
    """The same arrays, complete on each of their devices. All processes must call it, with arrays of one mesh.

    It waits: two processes that put together several things at once may begin with different ones, and wait for ever.
    """
    mesh = jax.tree.leaves(arrays)[0].sharding.mesh
    whole = jax.jit(_same, out_shardings=NamedSharding(mesh, PartitionSpec()))(arrays)
    return jax.block_until_ready(whole)


def _same(arrays: Any) -> Any:
    return arrays


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A copy: JAX may take the memory that it is given for its own."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16).copy()
    return tensor.numpy().copy()


def to_torch(array: Array) -> Tensor:
    """A copy in host memory; waits for the devices. All processes must call it for what is divided among them."""
    whole = array if array.is_fully_addressable or array.is_fully_replicated else complete(array)
    return torch.from_numpy(np.array(whole, copy=True))


def own_examples(array: Array) -> Tensor:
    """A copy in host memory of the examples, [B], that this process has put; waits for the devices."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return torch.from_numpy(np.concatenate([np.asarray(shard.data) for shard in shards]))


def keep_compiled(folder: Path) -> None:
    """Keep what is compiled in this folder, for later runs of the same shapes."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    compilation_cache.reset_cache()  # JAX looks for the folder once, when a process first compiles something
