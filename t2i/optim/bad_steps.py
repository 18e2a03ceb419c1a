"""Steps that are not taken because their gradient is not finite."""

from typing import Any

import torch
from torch import Tensor


def step_if_finite(
    optimizer: torch.optim.Optimizer, grad_norm: Tensor, scaler: torch.amp.GradScaler | None = None
) -> None:
    """Take the optimizer's step if the norm of its gradient is finite.

    On a GPU an optimizer decides that itself, if it can (PyTorch's fused ones, as for a GradScaler: `found_inf`), so
    that the host goes on without an answer. For the others the host waits. scaler: in fp16; it skips by itself.
    """
    inner: Any = getattr(optimizer, "optimizer", optimizer)  # that of Accelerate's wrapper
    if scaler is not None:
        optimizer.step()
    elif grad_norm.device.type != "cpu" and getattr(inner, "_step_supports_amp_scaling", False):
        inner.grad_scale, inner.found_inf = None, (~grad_norm.isfinite()).float()
        optimizer.step()
        del inner.grad_scale, inner.found_inf
    elif grad_norm.isfinite():
        optimizer.step()
