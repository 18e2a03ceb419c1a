"""A CUDA device without one: tensors on it have a shape, a type and a device, but no values.

Within `pretended()`, PyTorch sees a GPU. An operation on tensors of two devices raises, as on a GPU, and whatever would
make the host wait for the GPU is noted: a number or a copy that comes back (a made-up value goes on), a copy there that
is not from page-locked memory, and operations whose result's size depends on values.
"""

import contextlib
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
# Operations whose result has a size that is read from the device, with a result in its place.
SIZED_BY_VALUES = {
    aten.nonzero.default: lambda x: x.new_zeros((1, x.ndim), dtype=torch.long),
    aten.masked_select.default: lambda x, mask: x.new_zeros(1),
    aten.equal.default: lambda x, other: True,
}
COPIES = (aten.copy_.default, aten._to_copy.default)


class Wait(NamedTuple):
    """Something for which the host waits."""

    during: str  # what the program was at
    what: str
    where: tuple[str, ...]  # the innermost lines of the program, at most three


def on_gpu(value: Any) -> bool:
    return isinstance(value, FakeTensor) and value.device.type == "cuda"


class Watch(TorchDispatchMode):
    """Passes every operation on, and notes those for which the host waits."""

    def __init__(self, program: Path):
        super().__init__()
        self.program, self.during, self.waits = str(program), "start", list[Wait]()
        self.values = torch.Generator().manual_seed(0)
        self.page_locked = list[range]()  # addresses of memory on the host

    def note(self, what: str) -> None:
        where, frame = list[str](), sys._getframe(1)
        while frame is not None and len(where) < 3:
            if (file := frame.f_code.co_filename).startswith(self.program):
                where.append(f"{os.path.relpath(file, self.program)}:{frame.f_lineno}")
            frame = frame.f_back
        self.waits.append(Wait(self.during, what, tuple(where)))

    def made_up(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """What the device sends back: on the CPU, with values of no meaning; masks as of captions of unequal length."""
        shape, dtype = tuple(tensor.shape), dtype or tensor.dtype
        with no_dispatch():
            if dtype.is_floating_point:
                return torch.rand(shape, generator=self.values).to(dtype)
            return torch.ones(shape, dtype=dtype).tril() if len(shape) > 1 else torch.ones(shape, dtype=dtype)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        target = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
        if not any(isinstance(tensor, FakeTensor) for tensor in tensors) and target in (None, "cpu", "meta"):
            with no_dispatch():
                result = func(*args, **(kwargs | {"pin_memory": False} if kwargs.get("pin_memory") else kwargs))
            if kwargs.get("pin_memory"):
                self.page_locked.append(range(result.data_ptr(), result.data_ptr() + result.nbytes))
            return result
        answer = self.brought_back(func, args, kwargs, target)
        if answer is not NotImplemented:
            return answer
        if func in COPIES:
            self.check_upload(args[1] if func is aten.copy_.default else args[0], args, kwargs)
        if func is aten._foreach_copy_.default:
            for source in args[1]:
                self.check_upload(source, args, kwargs)
        if "index" in func._schema.name:
            args = self.check_index(func, args)
        return func(*args, **kwargs)

    def brought_back(self, func: Any, args: Any, kwargs: Any, target: str | None) -> Any:
        """What an operation brings back from the device, made up; NotImplemented if it brings nothing."""
        if func is aten._local_scalar_dense.default:
            self.note("a number comes back")
            return {torch.bool: True}.get(args[0].dtype, 1.0 if args[0].is_floating_point() else 1)
        if func in SIZED_BY_VALUES:
            self.note(f"the size of {func} comes back")
            return SIZED_BY_VALUES[func](*args)
        if func is aten._to_copy.default and on_gpu(args[0]) and target == "cpu":
            self.note(f"a copy of {tuple(args[0].shape)} comes back")
            return self.made_up(args[0], kwargs.get("dtype"))
        if func is aten.copy_.default and on_gpu(args[1]) and not on_gpu(args[0]):
            locked = any(args[0].data_ptr() in memory for memory in self.page_locked)
            if locked and (kwargs.get("non_blocking") or True in args[2:]):
                return args[0]
            self.note(f"a copy of {tuple(args[1].shape)} comes back")
            return args[0]
        return NotImplemented

    def check_upload(self, source: Tensor, args: Any, kwargs: Any) -> None:
        non_blocking = kwargs.get("non_blocking") or True in args[2:]
        if not on_gpu(source) and not (non_blocking and getattr(source, "is_page_locked", False)):
            self.note(f"a copy of {tuple(source.shape)} goes there from ordinary memory")

    def check_index(self, func: Any, args: Any) -> Any:
        """Masks, and indices on the other device; returns arguments without masks."""
        indices = [leaf for leaf in tree_leaves(args[1:]) if isinstance(leaf, Tensor)]
        if not on_gpu(args[0]):
            raise RuntimeError(f"{func}: indices on the GPU, what is indexed on the CPU")
        if any(not on_gpu(index) for index in indices):
            self.note(f"indices of {func} go there")
        if func is not aten.index.Tensor or not any(index.dtype == torch.bool for index in indices):
            return args
        self.note("the size of what a mask selects comes back")
        return args[0], tree_map(lambda i: i.new_zeros(1, dtype=torch.long) if on_gpu(i) else i, args[1])


def pin_memory(tensor: Tensor, device: Any = None) -> Tensor:
    """Marks a copy as page-locked: a CPU build has no such memory."""
    with no_dispatch():
        copy = tensor.clone()
    copy.is_page_locked = True
    return copy


def apply(module: torch.nn.Module, function: Any, recurse: bool = True) -> torch.nn.Module:
    """`nn.Module._apply` which replaces a parameter that goes to the device, as its data can't be exchanged."""
    for child in module.children():
        child._apply(function)
    for key, parameter in module._parameters.items():
        if parameter is None:
            continue
        with torch.no_grad():
            new = function(parameter)
        if (new.device, new.dtype) != (parameter.device, parameter.dtype):
            module._parameters[key] = torch.nn.Parameter(new, parameter.requires_grad)
    for key, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[key] = function(buffer)
    return module


@contextlib.contextmanager
def pretended(program: Path) -> Generator[Watch, None, None]:
    """Within, there is one GPU. program: the folder whose lines are noted."""
    answers = {
        "is_available": True,
        "is_initialized": False,
        "is_bf16_supported": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": "a pretended GPU",
        "get_device_capability": (9, 0),
        **dict.fromkeys(("max_memory_allocated", "memory_allocated"), 0),
        **dict.fromkeys(("set_device", "synchronize", "empty_cache", "ipc_collect", "_lazy_init"), None),
        **dict.fromkeys(("manual_seed", "manual_seed_all", "reset_peak_memory_stats"), None),
    }
    watch, save = Watch(program), torch.save

    def save_made_up(tree: Any, *args: Any, **kwargs: Any) -> None:
        save(
            tree_map(lambda leaf: watch.made_up(leaf) if isinstance(leaf, FakeTensor) else leaf, tree), *args, **kwargs
        )

    with contextlib.ExitStack() as stack:
        fake = FakeTensorMode(allow_non_fake_inputs=True)  # before there is a device
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, lambda *_, answer=answer, **__: answer))
        for owner, name, replacement in (
            (FakeTensorMode, "avoid_device_init", property(lambda mode: True)),
            (torch.Tensor, "pin_memory", pin_memory),
            (torch.cuda, "Event", mock.Mock),
            (torch.nn.Module, "_apply", apply),
            (torch, "save", save_made_up),
        ):
            stack.enter_context(mock.patch.object(owner, name, replacement))
        stack.enter_context(mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False))
        stack.enter_context(fake)
        stack.enter_context(watch)
        yield watch
