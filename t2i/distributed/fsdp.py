"""A network that the processes share out, as `accelerate launch --use_fsdp --fsdp_version 2` asks for it.

Each holds its slice of every weight, of its moments and of its average, and the weights are brought together for the
time of their use (Zhao et al. 2023, arXiv 2304.11277; PyTorch's `fully_shard`, whose slices are DTensors). Checkpoints
hold whole tensors, so that any number of processes can go on from them, sharded or not.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from t2i.config import ConfigError
from t2i.distributed.processes import autocast
from t2i.optim.precision import Precision
from t2i.optim.trained_weights import Trained
from t2i.runs.checkpoints import Stateful

# Their state is as large as the weights, or one number; each number of it depends on one weight.
OPTIMIZERS = ("torch.optim.AdamW", "torch.optim.Adam", "torch.optim.SGD", "schedulefree.AdamWScheduleFree")


def check(plugin: Any, precision: Precision, optimizer: str, switches: Mapping[str, bool]) -> None:
    """Refuse what can't be sharded.

    plugin: accelerate's. optimizer: its `_target_`. switches: settings that have to be false, by their names.
    """
    otherwise = "or accelerate launch --multi_gpu, which shards nothing"
    if precision.dtype == "fp16":
        raise ConfigError(f"precision=fp16 is not supported with FSDP; use precision=bf16, {otherwise}")
    if precision.weights != "fp32":
        raise ConfigError(
            f"precision.weights={precision.weights} is not supported with FSDP; use precision.weights=fp32, {otherwise}"
        )
    if optimizer not in OPTIMIZERS:
        raise ConfigError(f"optimizer: {optimizer} does not step shards (FSDP); use optimizer=adamw, {otherwise}")
    for name, on in switches.items():
        if on:
            raise ConfigError(f"{name}=true is not supported with FSDP; use {name}=false, {otherwise}")
    if plugin.activation_checkpointing:
        raise ConfigError("fsdp_activation_checkpointing is not supported; use gradient_checkpointing=true")
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise ConfigError("fsdp_offload_params is not supported; set it to false")


class Sharded:
    """Every process holds its slice of each weight; like `processes.Replicated`."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator

    def prepare(
        self, model: Any, trained: Trained, optimizer: torch.optim.Optimizer
    ) -> tuple[Trained, torch.optim.Optimizer]:
        """Shard the model's denoiser, and let the optimizer step the shards; returns what is then trained.

        What is multiplied in bfloat16 is cast by autocast, as without FSDP: the policy that accelerate sets would cast
        biases, norms and the sums of gradients as well, and train another network than one process does.
        """
        hollow = _hollow(model.denoiser)
        self.accelerator.state.fsdp_plugin.mixed_precision_policy = None
        if self.accelerator.native_amp:
            model.denoiser.forward = autocast(self.accelerator)(model.denoiser.forward)
        model.denoiser, optimizer = self.accelerator.prepare(model.denoiser, optimizer)
        return Shards(model, hollow, self.accelerator.is_main_process), optimizer

    def parts(self, optimizer: torch.optim.Optimizer, **parts: Stateful) -> dict[str, Stateful]:
        """The parts of a checkpoint, as any number of processes can load them."""
        main = self.accelerator.is_main_process
        whole = {name: Whole(part, main) for name, part in parts.items()}
        return {"optimizer": WholeOptimizer(optimizer, main), **whole}


class Shards(Trained):
    """What of a sharded network is trained: the weights are slices, and those of the optimizer."""

    def __init__(self, model: Any, hollow: nn.Module, writes: bool):
        """hollow: the model's denoiser as it was before it was sharded, but without values.

        writes: whether this process is the one that exports; the others gather nothing.
        """
        self.model, self.hollow, self.writes = model, hollow, writes
        named = model.denoiser.named_parameters()
        self.parameters = {name: weight for name, weight in named if weight.requires_grad}
        self.weights = dict(self.parameters)

    @contextmanager
    def replaced(self, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> Iterator[None]:
        """Within, the network has these slices for weights; with `dtype`, to be saved, it is whole and not sharded."""
        with self._gathered(tensors, dtype) if dtype else self._swapped(tensors):
            yield

    @contextmanager
    def _swapped(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        own = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self._set(tensors)
        try:
            yield
        finally:
            self._set(own)

    @torch.no_grad()
    def _set(self, tensors: Mapping[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(tensors[name])
        for module in self.model.denoiser.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # without a backward pass the outermost keeps what it has brought together

    @contextmanager
    def _gathered(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Iterator[None]:
        own = self.model.denoiser
        whole = {name: gather(tensors[name].detach(), self.writes).to(dtype) for name in self.weights}
        if self.writes:
            self.hollow.load_state_dict(whole, strict=False, assign=True)
        self.model.denoiser = self.hollow
        try:
            yield
        finally:
            self.model.denoiser = own
            self.hollow.to("meta")


def _hollow(network: nn.Module) -> nn.Module:
    """A copy without values, which takes no memory."""
    empty = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=weight.requires_grad)
        for weight in network.parameters()
    }
    return copy.deepcopy(network, empty)


class Whole:
    """A part of a checkpoint that has slices, as one that has whole tensors. Every process has to call it.

    keeps: whether this process gets the tensors; the others take part only.
    """

    def __init__(self, part: Stateful, keeps: bool):
        self.part, self.keeps = part, keeps

    def state_dict(self) -> dict[str, Any]:
        return self._whole(self.part.state_dict())

    def _whole(self, tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: self._whole(value) for key, value in tree.items()}
        return gather(tree, self.keeps) if isinstance(tree, DTensor) else tree

    def load_state_dict(self, state: dict[str, Any]) -> None:
        own = self.part.state_dict()
        self.part.load_state_dict({key: slice_like(own.get(key), value) for key, value in state.items()})


class WholeOptimizer(Whole):
    """The same of an optimizer, whose state of a weight is sliced as the weight is."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        weights = [weight for group in self.part.param_groups for weight in group["params"]]
        sliced = {
            place: {
                name: slice_like(weights[place], value) if _alike(weights[place], value) else value
                for name, value in states.items()
            }
            for place, states in state["state"].items()
        }
        self.part.load_state_dict(state | {"state": sliced})


def _alike(weight: Tensor, value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape == weight.shape


def gather(tensor: Tensor, keeps: bool) -> Tensor:
    """All of it, on the CPU; an empty tensor for a process that does not keep it."""
    whole = tensor.full_tensor()
    return whole.cpu() if keeps else whole.new_empty(0)


def slice_like(own: Any, whole: Any) -> Any:
    """This process's slice of `whole`, where `own` is a slice; no process asks another."""
    if not isinstance(own, DTensor):
        return whole
    sliced = distribute_tensor(whole.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
    return sliced.clone()  # a view would keep the whole
