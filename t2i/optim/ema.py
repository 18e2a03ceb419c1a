"""Averages of the weights, which are evaluated and exported next to the raw weights."""

from collections.abc import Collection, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from t2i.config import ConfigError
from t2i.optim.trained_weights import TrainedWeights, copy_state

AT_ONCE = 64  # tensors averaged by one call: those that are not float32 are cast for it, which takes memory


class WeightAverage(Protocol):
    """An average of the trained weights; a part of a checkpoint."""

    def track(self, trained: TrainedWeights, optimizer: torch.optim.Optimizer) -> None:
        """Average these weights, from their current values on; ConfigError if the optimizer does not suit."""
        ...

    def update(self) -> None:
        """Take account of the weights after an optimizer step."""
        ...

    def applied(self, dtype: torch.dtype | None = None) -> AbstractContextManager[None]:
        """A context in which the network has the averaged weights; for `dtype` see `TrainedWeights.replaced`."""
        ...

    def variants(self) -> dict[str, AbstractContextManager[None]]:
        """The weights worth evaluating, raw and averaged: each a context, under the prefix of its metrics."""
        ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def snapshot_steps(self, steps: int) -> Collection[int]:
        """The steps of a run of so many after which the average is stored in a file of its own."""
        return ()

    def snapshot(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is stored, from the state that a checkpoint would hold."""
        return {}


class EMA(WeightAverage):
    """shadow ← shadow + (1 − decay) · (weights − shadow) after each step, in float32.

    With `warmup` the decay of update n is at most (1 + n) / (10 + n), so that the average forgets the first weights
    quickly (the rule of Diffusers' EMAModel and of TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, decay: float, warmup: bool = True):
        if not 0 <= decay < 1:
            raise ConfigError(
                f"ema.decay={decay} must be in [0, 1); 0.999 averages about the last 1000 steps (for none: ema=none)"
            )
        self.decay, self.warmup = decay, warmup
        self.updates = 0

    def track(self, trained: TrainedWeights, optimizer: torch.optim.Optimizer) -> None:
        refuse_schedule_free(optimizer)
        self.trained = trained
        self.shadow = copies(trained)

    def next_decays(self) -> list[float]:
        """The decay of the next update."""
        number = self.updates + 1
        return [min(self.decay, (1 + number) / (10 + number)) if self.warmup else self.decay]

    @torch.no_grad()
    def update(self) -> None:
        [decay] = self.next_decays()
        self.updates += 1
        move(self.shadow, self.trained, decay, self.updates)

    def applied(self, dtype: torch.dtype | None = None) -> AbstractContextManager[None]:
        return self.trained.replaced(self.shadow, dtype)

    def variants(self) -> dict[str, AbstractContextManager[None]]:
        return {"": nullcontext(), "ema/": self.applied()}

    def state_dict(self) -> dict[str, Tensor]:
        return self.shadow | {"updates": torch.tensor(self.updates)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = int(state["updates"])
        copy_state(self.shadow, state)


class NoEMA(WeightAverage):
    """No average: only the raw weights exist. Settings of an average, which models bring, have no effect."""

    def __init__(self, decay: float = 0.0, warmup: bool = False):
        pass

    def track(self, trained: TrainedWeights, optimizer: torch.optim.Optimizer) -> None:
        refuse_schedule_free(optimizer)
        self.trained = trained

    def update(self) -> None:
        pass

    def applied(self, dtype: torch.dtype | None = None) -> AbstractContextManager[None]:
        return self.trained.replaced(self.trained.weights, dtype) if dtype else nullcontext()

    def variants(self) -> dict[str, AbstractContextManager[None]]:
        return {"": nullcontext()}

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@runtime_checkable
class ScheduleFreeOptimizer(Protocol):
    """An optimizer that averages its weights itself, and exchanges the raw ones for the average and back."""

    def train(self) -> None: ...

    def eval(self) -> None: ...


class ScheduleFree(NoEMA):
    """The average that a schedule-free optimizer keeps (Defazio et al. 2024, arXiv 2405.15682): its `eval` weights."""

    def track(self, trained: TrainedWeights, optimizer: torch.optim.Optimizer) -> None:
        if not isinstance(optimizer, ScheduleFreeOptimizer):
            raise ConfigError("ema=schedule_free is the average of optimizer=schedulefree; use ema=standard")
        self.trained, self.optimizer = trained, optimizer
        optimizer.train()

    @contextmanager
    def applied(self, dtype: torch.dtype | None = None) -> Generator[None, None, None]:
        raw = self._copies()  # the optimizer's own way back to the raw weights rounds them
        self.optimizer.eval()
        average = self._copies()
        self.optimizer.train()
        with torch.no_grad():
            for name, weight in self.trained.weights.items():
                weight.copy_(raw[name])
        with self.trained.replaced(average, dtype):
            yield

    def _copies(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in self.trained.weights.items()}

    def variants(self) -> dict[str, AbstractContextManager[None]]:
        return {"": nullcontext(), "ema/": self.applied()}


def copies(trained: TrainedWeights) -> dict[str, Tensor]:
    """The weights as an average begins with them, in float32 at least."""
    return {name: _at_least_float32(weight.detach()).clone() for name, weight in trained.weights.items()}


def move(shadow: dict[str, Tensor], trained: TrainedWeights, decay: float, updates: int) -> None:
    """shadow ← shadow + (1 − decay) · (weights − shadow)."""
    average = get_ema_multi_avg_fn(decay)
    averages, weights = list(shadow.values()), list(trained.weights.values())
    for first in range(0, len(averages), AT_ONCE):
        some = slice(first, first + AT_ONCE)
        average(averages[some], [_at_least_float32(weight) for weight in weights[some]], updates)


def exported_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The averaged weights that are sampled and exported, of the state of an average; {} if it holds none."""
    return {name: tensor for name, tensor in state.items() if name != "updates" and "/" not in name}


def refuse_schedule_free(optimizer: torch.optim.Optimizer) -> None:
    if isinstance(optimizer, ScheduleFreeOptimizer):
        raise ConfigError("optimizer=schedulefree averages the weights itself; use ema=schedule_free")


def _at_least_float32(weight: Tensor) -> Tensor:
    return weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight
