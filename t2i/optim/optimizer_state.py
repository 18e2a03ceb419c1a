"""The optimizer as a part of a checkpoint: its state has to be one of the weights that it updates."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from t2i.config import ConfigError
from t2i.optim.optimizers import lying_as

OF_WEIGHT_SHAPE = (  # states of PyTorch's optimizers, Lion, Prodigy and ScheduleFree: an entry for each of the weight's
    *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "acc_delta", "sum"),
    *("grad_avg", "exp_inf", "prev", "z"),
)


class CheckedOptimizer:
    """An optimizer that refuses the state of other weights, at which only its next step would fail."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_state(self.optimizer, state)
        self.optimizer.load_state_dict(state)
        if isinstance(self.optimizer.state, Mapping):  # it is on other devices in JAX
            for weight, kept in self.optimizer.state.items():
                _lie_as(weight, kept)


def check_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Raise ConfigError where a state from a checkpoint can't be that of the optimizer's weights."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    names: dict[int, set[str]] = {}  # by the number of axes: some optimizers treat vectors in another way
    own = type(getattr(optimizer, "optimizer", optimizer)).__module__.startswith("torch.optim")
    for number, kept in state["state"].items():
        weight = weights[number]
        for name in set(kept).intersection(OF_WEIGHT_SHAPE):
            _check_tensor(f"{name} of weight {number}", kept[name], weight.shape)
        if own and (lacking := names.setdefault(weight.ndim, set(kept)) ^ set(kept)):
            raise ConfigError(f"the optimizer's state has {min(lacking)} for some weights only")
        step = kept.get("step", 0)
        if isinstance(step, Tensor) and step.is_meta:  # a tensor of a shape alone
            continue
        if not 0 <= float(step) < math.inf:  # NaN is refused, too
            raise ConfigError(f"the optimizer's state says that weight {number} has taken {step} steps")


def _lie_as(weight: Tensor, kept: dict[str, Any]) -> None:
    """Lay the state of a weight out as the weight is, which fused optimizers take for granted.

    It differs in a run that goes on with another `channels_last`, or from a checkpoint of JAX.
    """
    for name, value in kept.items():
        same = isinstance(value, Tensor) and value.shape == weight.shape and value.layout == weight.layout
        if same and not value.is_meta and value.device == weight.device:
            kept[name] = lying_as(weight, value)


def _check_tensor(name: str, value: Any, shape: Sequence[int]) -> None:
    if value is None:  # SGD without momentum
        return
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape != shape:
        found = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(f"{name} is {found} in the optimizer's state, and must be {tuple(shape)} of floating point")
