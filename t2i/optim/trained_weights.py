"""The weights that are trained: as the network multiplies them, and as the optimizer updates them."""

from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from t2i.config import ConfigError
from t2i.optim.precision import FP32, Precision


class TrainedWeights(Protocol):
    """The weights of a network that are trained, by name; a part of a checkpoint."""

    weights: Mapping[str, Tensor]  # what the optimizer updates, and what averages and checkpoints hold

    def replaced(self, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> AbstractContextManager[None]:
        """A context in which the network computes with these tensors.

        With `dtype` they are in that type, and the model's denoiser can be saved; otherwise they are in the type that
        the network multiplies them in.
        """
        ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class NetworkWeights(TrainedWeights):
    """Trained weights of a network that this process holds completely.

    parameters: the network's own, which make its predictions.
    weights: the parameters themselves; or, with a master copy, float32 copies. The gradient of a parameter is added to
    the gradient of its copy as soon as it is computed, and after each optimizer step the copies are rounded into the
    parameters.
    """

    def __init__(self, parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor]):
        self.parameters, self.weights = parameters, weights

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Round the copies into the parameters after each step of the optimizer."""
        optimizer.register_step_post_hook(lambda *_: self.round())

    def round(self) -> None:
        """Set the parameters to the weights, in the type that the network multiplies them in."""
        copied = [name for name, weight in self.weights.items() if weight is not self.parameters[name]]
        copy_each([self.parameters[name] for name in copied], [self.weights[name] for name in copied])

    @contextmanager
    def replaced(self, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> Generator[None, None, None]:
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

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        load_weights(self.weights, state)
        self.round()


def hold_weights(network: nn.Module, precision: Precision = FP32) -> NetworkWeights:
    """Convert the network's parameters to the types that `precision` asks for; returns those that are trained.

    In half precision, matrices and kernels are held in the type that they are multiplied in. Autocast would cast them
    at every use; the products are the same, bit for bit. Vectors (biases, norms) stay in float32, and quantised weights
    stay the integers that they are.
    """
    parameters = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    weights: dict[str, Tensor] = dict(parameters)
    for name, parameter in network.named_parameters():
        if not parameter.is_floating_point():
            continue
        if parameter.ndim < 2:  # a view would keep the complete weights file mapped into memory
            parameter.data = parameter.data.to(torch.float32, copy=True)
            continue
        if parameter.requires_grad and precision.weights == "fp32":
            continue
        if parameter.requires_grad and precision.weights == "master":
            weights[name] = parameter.detach().clone().requires_grad_()
            parameter.register_post_accumulate_grad_hook(_move_gradient_to(weights[name]))
        parameter.data = parameter.data.to(precision.compute)
    return NetworkWeights(parameters, weights)


@torch.no_grad()
def load_weights(weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint's tensors into the weights; ConfigError if their names or shapes differ."""
    if differing := state.keys() ^ weights.keys():
        raise ConfigError(
            f"the checkpoint holds other weights than this run trains, such as {min(differing)}; use the model and the "
            "adapter of the run that wrote it"
        )
    copy_state(weights, state)


@torch.no_grad()
def copy_state(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint's tensors into those of the same names. ConfigError if one is no number of the same shape.

    PyTorch would repeat a tensor of fewer elements as often as it fits, and take integers and complex numbers.
    """
    for name, tensor in tensors.items():
        given = state[name]
        if given.shape != tensor.shape or not given.is_floating_point():
            raise ConfigError(
                f"{name} has the shape {tuple(given.shape)} and the type {given.dtype} in the checkpoint, and "
                f"{tuple(tensor.shape)} in this run"
            )
    for name, tensor in tensors.items():
        tensor.copy_(state[name])


@torch.no_grad()
def copy_each(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy each source into its target, cast to the target's type; on a GPU a few kernels copy all of them.

    PyTorch has no public function for it.
    """
    if targets:
        torch._foreach_copy_(targets, sources)


def _move_gradient_to(master: Tensor) -> Callable[[Tensor], None]:
    """A hook that moves the gradient of a parameter to its master copy."""

    def move(parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None, "the hook runs after the gradient was computed"
        if master.grad is None:
            master.grad = gradient.to(master.dtype)
        else:
            master.grad.add_(gradient)

    return move
