"""Moving average of the weights: what is evaluated and exported beside the raw ones."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from t2i.config import ConfigError
from t2i.optim.trained_weights import Trained

AT_ONCE = 64  # tensors that are averaged by one call: what is not float32 is cast for it


class EMA:
    """shadow ← shadow + (1 − decay) · (weights − shadow) after each step, in float32.

    With `warmup` the decay of update n is at most (1 + n) / (10 + n), so that the average forgets the first weights
    quickly (the rule of Diffusers' EMAModel and of TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, decay: float, warmup: bool = True):
        if not 0 <= decay < 1:
            raise ConfigError(
                f"ema.decay={decay} must be in [0, 1); 0.999 averages about the last 1000 steps (none: ema=none)"
            )
        self.decay, self.warmup = decay, warmup
        self.updates = 0

    def track(self, trained: Trained, optimizer: torch.optim.Optimizer) -> None:
        """Start from the present weights."""
        _refuse_schedule_free(optimizer)
        self.trained = trained
        self.shadow = {name: _full(weight.detach()).clone() for name, weight in trained.weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        shadow, weights = list(self.shadow.values()), list(self.trained.weights.values())
        for first in range(0, len(shadow), AT_ONCE):
            part = slice(first, first + AT_ONCE)
            torch._foreach_lerp_(shadow[part], [_full(weight) for weight in weights[part]], 1 - decay)

    def applied(self, dtype: torch.dtype | None = None) -> AbstractContextManager:
        """Within, the network has the averaged weights, in the type that it multiplies, or in `dtype`."""
        return self.trained.replaced(self.shadow, dtype)

    def variants(self) -> dict[str, AbstractContextManager]:
        """The weights worth evaluating: raw and averaged, each as a context, under the prefix of its metric keys."""
        return {"": nullcontext(), "ema/": self.applied()}

    def state_dict(self) -> dict[str, Tensor]:
        return self.shadow | {"updates": torch.tensor(self.updates)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.updates = int(state["updates"])
        for name, average in self.shadow.items():
            average.copy_(state[name])


class NoEMA:
    """No average: the raw weights are all there is. The settings of an average, which models bring, have no effect."""

    def __init__(self, decay: float = 0.0, warmup: bool = False):
        pass

    def track(self, trained: Trained, optimizer: torch.optim.Optimizer) -> None:
        _refuse_schedule_free(optimizer)
        self.trained = trained

    def update(self) -> None:
        pass

    def applied(self, dtype: torch.dtype | None = None) -> AbstractContextManager:
        return self.trained.replaced(self.trained.weights, dtype) if dtype else nullcontext()

    def variants(self) -> dict[str, AbstractContextManager]:
        return {"": nullcontext()}

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        pass


class ScheduleFree(NoEMA):
    """The average that a schedule-free optimizer keeps (Defazio et al. 2024, arXiv 2405.15682): its `eval` weights."""

    def track(self, trained: Trained, optimizer: torch.optim.Optimizer) -> None:
        if not hasattr(optimizer, "eval"):
            raise ConfigError("ema=schedule_free is the average of optimizer=schedulefree; use ema=standard")
        self.trained, self.optimizer = trained, optimizer
        optimizer.train()

    @contextmanager
    def applied(self, dtype: torch.dtype | None = None) -> Iterator[None]:
        raw = {name: weight.detach().clone() for name, weight in self.trained.weights.items()}  # the way back rounds
        self.optimizer.eval()
        average = {name: weight.detach().clone() for name, weight in self.trained.weights.items()}
        self.optimizer.train()
        with torch.no_grad():
            for name, weight in self.trained.weights.items():
                weight.copy_(raw[name])
        with self.trained.replaced(average, dtype):
            yield

    def variants(self) -> dict[str, AbstractContextManager]:
        return {"": nullcontext(), "ema/": self.applied()}


def _refuse_schedule_free(optimizer: torch.optim.Optimizer) -> None:
    if hasattr(optimizer, "eval"):
        raise ConfigError("optimizer=schedulefree averages the weights itself; use ema=schedule_free")


def _full(weight: Tensor) -> Tensor:
    """In at least single precision."""
    return weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight
