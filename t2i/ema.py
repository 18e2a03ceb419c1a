"""Moving average of the weights: what is evaluated and exported beside the raw ones."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from t2i.config import ConfigError


class EMA:
    """shadow ← shadow + (1 − decay) · (weights − shadow) after each step.

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

    def track(self, module: nn.Module) -> None:
        """Start from the module's present weights."""
        self.names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        self.weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.shadow = [weight.detach().clone() for weight in self.weights]

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        torch._foreach_lerp_(self.shadow, self.weights, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the module computes with the averaged weights."""
        raw = [weight.data for weight in self.weights]
        for weight, average in zip(self.weights, self.shadow, strict=True):
            weight.data = average
        try:
            yield
        finally:
            for weight, data in zip(self.weights, raw, strict=True):
                weight.data = data

    def variants(self) -> dict[str, AbstractContextManager]:
        """The weights worth evaluating: raw and averaged, each as a context, under the prefix of its metric keys."""
        return {"": nullcontext(), "ema/": self.applied()}

    def state_dict(self) -> dict[str, Tensor]:
        state = dict(zip(self.names, self.shadow, strict=True))
        return state | {"updates": torch.tensor(self.updates)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.updates = int(state["updates"])
        for name, average in zip(self.names, self.shadow, strict=True):
            average.copy_(state[name])


class NoEMA:
    """No average: the raw weights are all there is."""

    def track(self, module: nn.Module) -> None:
        pass

    def update(self) -> None:
        pass

    def applied(self) -> AbstractContextManager:
        return nullcontext()

    def variants(self) -> dict[str, AbstractContextManager]:
        return {"": nullcontext()}

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        pass
