"""Networks with shapes and types, but without weights: what they need is counted where they would not fit."""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode  # has no public name; PyTorch's documentation describes it

_mode: ContextVar[FakeTensorMode | None] = ContextVar("shapes_only", default=None)


@contextmanager
def shapes_only() -> Generator[FakeTensorMode, None, None]:
    """A context in which the networks of a pipeline that is opened have no weights.

    Operations that involve such a network give tensors of the right shape, type and device without contents, for which
    no memory is taken. The rest, such as tokens and masks, is computed. Inside of the mode that the context gives, no
    new tensor has contents.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    token = _mode.set(mode)
    try:
        yield mode
    finally:
        _mode.reset(token)


def current_mode() -> FakeTensorMode | None:
    """The mode of the context of `shapes_only` that this is called in; None outside of one."""
    return _mode.get()


def empty_parameters(network: nn.Module, mode: FakeTensorMode) -> None:
    """Take the contents of the parameters that have some, such as those of an adapter that was added to the network."""
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            with mode:
                setattr(module, name, nn.Parameter(torch.empty_like(parameter), parameter.requires_grad))
