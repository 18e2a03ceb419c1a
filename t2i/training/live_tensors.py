"""How much memory tensors take, counted operation by operation: the same for tensors without contents."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveTensors(TorchDispatchMode):
    """Inside of this context, counts the bytes of the tensors that operations make, for as long as they live.

    Views share the bytes of what they show. Tensors from before the context, such as weights, do not count, and neither
    does what a kernel takes for itself while it runs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0  # bytes
        self._alive: dict[int, tuple[weakref.ref, int]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if made := _storages(result):
            given = _storages((args, kwargs))
            for key in made.keys() - given.keys():
                self._add(made[key])
        return result

    def _add(self, storage: UntypedStorage) -> None:
        reference = weakref.ref(storage, self._remove)
        self._alive[id(reference)] = (reference, storage.nbytes())
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)

    def _remove(self, reference: weakref.ref) -> None:
        _, size = self._alive.pop(id(reference))
        self.now -= size


def _storages(values: Any) -> dict[int, UntypedStorage]:
    storages = (value.untyped_storage() for value in tree_iter(values) if isinstance(value, Tensor))
    return {id(storage): storage for storage in storages}
