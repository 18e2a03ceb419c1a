"""The weights that are trained: as the network multiplies them, and as the optimizer updates them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from t2i.config import ConfigError
from t2i.optim.precision import FP32, Precision


class Trained:
    """What of a network is trained, by name; a part of a checkpoint.

    parameters: the network's own, which make its predictions.
    weights: what the optimizer steps, and what averages and checkpoints hold. The parameters themselves; or, where the
    precision keeps a master copy, float32 copies: a gradient is added to its copy's as soon as it is there, and after
    each step of the optimizer the parameters are the copies, rounded.

    In half precision, matrices and kernels are held in the type that they are multiplied in. Autocast would cast them
    at every use; the products are the same, bit for bit. Vectors (biases, norms) stay in float32.
    """

    def __init__(self, network: nn.Module, precision: Precision = FP32):
        self.parameters = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
        self.weights: dict[str, Tensor] = dict(self.parameters)
        for name, parameter in network.named_parameters():
            if parameter.ndim < 2:  # else it would keep the file that all were read from in memory
                parameter.data = parameter.data.clone()
                continue
            if parameter.requires_grad and precision.weights == "fp32":
                continue
            if parameter.requires_grad and precision.weights == "master":
                self.weights[name] = parameter.detach().clone().requires_grad_()
                parameter.register_post_accumulate_grad_hook(_adds_to(self.weights[name]))
            parameter.data = parameter.data.to(precision.compute)

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the parameters follow the copies at each step of the optimizer."""
        optimizer.register_step_post_hook(lambda *_: self.round())

    @torch.no_grad()
    def round(self) -> None:
        """The parameters become the weights, in the type that they are multiplied in."""
        apart = [name for name, weight in self.weights.items() if weight is not self.parameters[name]]
        if apart:
            torch._foreach_copy_([self.parameters[name] for name in apart], [self.weights[name] for name in apart])

    @contextmanager
    def replaced(self, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> Iterator[None]:
        """Within, the network has these tensors for parameters, in the type that it multiplies, or in `dtype`."""
        own = {name: parameter.data for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            parameter.data = tensors[name].detach().to(dtype or parameter.dtype)
        try:
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.data = own[name]

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.weights)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if differing := state.keys() ^ self.weights.keys():
            raise ConfigError(f"the checkpoint has other weights than are trained, such as {min(differing)}")
        for name, weight in self.weights.items():
            weight.copy_(state[name])
        self.round()


def _adds_to(master: Tensor):
    """A hook that moves the gradient of a parameter to its master copy."""

    def move(parameter: Tensor) -> None:
        if master.grad is None:
            master.grad = parameter.grad.to(master.dtype)
        else:
            master.grad.add_(parameter.grad)
        parameter.grad = None

    return move
