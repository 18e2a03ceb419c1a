"""torch.compile for a denoiser, with and without CUDA graphs."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from t2i.config.device_settings import GRAPHS


def compile_denoiser(denoiser: nn.Module, mode: bool | str) -> None:
    """Compile a network in place. mode: the setting `compile`; false leaves the network as it is.

    CUDA graphs repeat the launches of one step from the GPU's own record of them. A record holds for one shape and for
    weights at one place, so each shape is compiled by itself, and `uncompiled` is for what comes between the steps.
    """
    if mode is True:
        denoiser.compile()
    elif mode:
        denoiser.compile(mode=mode, dynamic=False)


def uncompiled(mode: bool | str) -> AbstractContextManager[None]:
    """A context for validation and samples: with CUDA graphs they compute without the compiler.

    They have other shapes than the steps, and the averaged weights lie elsewhere, so that each would need a record.
    """
    return torch.compiler.set_stance("force_eager") if mode in GRAPHS else nullcontext()
