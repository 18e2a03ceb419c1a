"""What the rest of t2i sees of a state on JAX's devices: PyTorch's network, weights, optimizer and average."""

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from t2i.backends.jax.devices import to_torch
from t2i.backends.jax.state import State
from t2i.config import ConfigError
from t2i.optim.ema import EMA, NoEMA, WeightAverage
from t2i.optim.post_hoc import PostHoc
from t2i.optim.trained_weights import NetworkWeights, TrainedWeights


class Forward:
    """Takes the place of a network's `forward`: validation and Diffusers' pipelines predict on JAX's devices."""

    def __init__(self, network: nn.Module, state: State):
        """network: of PyTorch, with its own `forward` yet."""
        self.signature, self.state = inspect.signature(network.forward), state

    def __call__(self, *positional: Any, **named: Any) -> Any:
        """As Diffusers' network; what JAX's does not know must be None."""
        given = dict(self.signature.bind(*positional, **named).arguments)
        returns_dict = given.pop("return_dict", True)
        given |= given.pop("added_cond_kwargs", None) or {}
        network = self.state.compiled.network
        inputs = {network.arguments.get(name, name): value for name, value in given.items() if value is not None}
        x, time = inputs.pop("x"), torch.as_tensor(inputs.pop("time"))
        assert inputs.keys() == set(network.inputs), inputs.keys()
        prediction = self.state.predict(x, time.expand(len(x)), inputs).to(x.dtype)
        return Transformer2DModelOutput(sample=prediction) if returns_dict else (prediction,)


class HostCopy(Mapping[str, Tensor]):
    """Weights in host memory, which become those of the devices when one of them is looked at."""

    def __init__(self, tensors: Mapping[str, Tensor], state: State):
        self.tensors, self.state, self.copied = tensors, state, 0

    def __getitem__(self, name: str) -> Tensor:
        if self.copied != self.state.steps:
            copy_into(self.tensors, self.state.weights)
            self.copied = self.state.steps
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


class WeightsInJax(TrainedWeights):
    """The trained weights, of which PyTorch's parameters are a copy."""

    def __init__(self, own: NetworkWeights, state: State):
        self.own, self.state = own, state
        self.copy = HostCopy(own.weights, state)
        self.weights = self.copy

    def replaced(self, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> AbstractContextManager[None]:
        return self.own.replaced(tensors, dtype) if dtype else self.state.computing_with(tensors)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.weights)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.own.load_state_dict(state)
        self.state.weights = self.state.devices.put_weights(self.own.weights)
        self.copy.copied = self.state.steps


class OptimizerInJax:
    """The state of one of PyTorch's optimizers, which keeps its settings and the learning rate."""

    def __init__(self, optimizer: torch.optim.Optimizer, names: Sequence[str], state: State):
        """names: of the weights, in the order in which the optimizer has them; JAX sorts what it returns."""
        self.optimizer, self.names, self.state = optimizer, list(names), state

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    @property
    def defaults(self) -> dict[str, Any]:
        return self.optimizer.defaults

    def state_dict(self) -> dict[str, Any]:
        """As PyTorch's: the state of each weight under its number."""
        step = int(self.state.step)
        kept = {
            number: {"step": torch.tensor(float(step)), **{kind: to_torch(array) for kind, array in moments.items()}}
            for number, moments in enumerate(self.state.moments[name] for name in self.names)
        }
        return {"state": kept if step else {}, "param_groups": self.optimizer.state_dict()["param_groups"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict({**state, "state": {}})
        kept = state["state"]
        moments = {name: kept[number] for number, name in enumerate(self.names) if number in kept}
        self.state.replace_moments(moments, int(max((each["step"] for each in kept.values()), default=0)))


class AverageInJax(WeightAverage):
    """One of t2i's averages, which the devices update with each step."""

    def __init__(self, average: WeightAverage, state: State):
        """ConfigError for averages that an optimizer keeps."""
        if type(average) not in (EMA, NoEMA, PostHoc):
            raise ConfigError(
                "ema=schedule_free belongs to an optimizer that backend=jax does not have; use ema=standard"
            )
        self.average, self.state, self.copied = average, state, 0

    def track(self, trained: TrainedWeights, optimizer: torch.optim.Optimizer) -> None:
        self.average.track(trained, optimizer)
        self.state.add_averages(self._shadows())

    def decays(self) -> list[float]:
        """Of each average in the update that comes next."""
        average = self.average
        return average.next_decays() if isinstance(average, EMA | PostHoc) else []

    def update(self) -> None:
        """Count the update that the devices have made."""
        if isinstance(self.average, EMA | PostHoc):
            self.average.updates += 1

    def applied(self, dtype: torch.dtype | None = None) -> AbstractContextManager[None]:
        self._copy()
        return self.average.applied(dtype)

    def variants(self) -> dict[str, AbstractContextManager[None]]:
        return {"": nullcontext(), "ema/": self.applied()} if self.state.averages else {"": nullcontext()}

    def state_dict(self) -> dict[str, Tensor]:
        self._copy()
        return self.average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.load_state_dict(state)
        self.state.add_averages(self._shadows())
        self.copied = self.state.steps

    def snapshot_steps(self, steps: int) -> Collection[int]:
        return self.average.snapshot_steps(steps)

    def snapshot(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.average.snapshot(state)

    def _shadows(self) -> list[dict[str, Tensor]]:
        average = self.average
        if isinstance(average, PostHoc):
            return list(average.averages.values())
        return [average.shadow] if isinstance(average, EMA) else []

    def _copy(self) -> None:
        if self.copied != self.state.steps:
            for shadow, arrays in zip(self._shadows(), self.state.averages, strict=True):
                copy_into(shadow, arrays)
            self.copied = self.state.steps


@torch.no_grad()
def copy_into(tensors: Mapping[str, Tensor], arrays: Mapping[str, Any]) -> None:
    for name, tensor in tensors.items():
        tensor.copy_(to_torch(arrays[name]))
