"""A network whose weights are divided among the processes (`accelerate launch --use_fsdp --fsdp_version 2`).

Each process holds a slice of every weight, of its moments and of its average; the complete weights are gathered only
while they are used (Zhao et al. 2023, arXiv 2304.11277; PyTorch's `fully_shard`, whose slices are DTensors).
Checkpoints hold complete tensors, so that any number of processes can resume from them, sharded or not.
"""

import copy
import os
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.distributed.tensor import DTensor, distribute_tensor

from t2i.config import ConfigError
from t2i.distributed.processes import Layout, autocast
from t2i.models.model import Model
from t2i.optim.optimizer_state import check_state
from t2i.optim.precision import Precision
from t2i.optim.trained_weights import NetworkWeights, TrainedWeights, load_weights
from t2i.runs.checkpoints import Stateful

# Their state of a weight is a tensor of its shape or one number, and each element depends on one element of the weight.
OPTIMIZERS = ("torch.optim.AdamW", "torch.optim.Adam", "torch.optim.SGD", "schedulefree.AdamWScheduleFree")


def check(plugin: Any, precision: Precision, optimizer: str, switches: Mapping[str, Any]) -> None:
    """ConfigError for settings that can't be sharded.

    plugin: Accelerate's. optimizer: its `_target_`. switches: settings that must be false or null, by name.
    """
    otherwise = "or accelerate launch --multi_gpu, which shards nothing"
    if precision.dtype == "fp16":
        raise ConfigError(f"precision=fp16 is not supported with FSDP; use precision=bf16, {otherwise}")
    if precision.weights != "fp32":
        raise ConfigError(
            f"precision.weights={precision.weights} is not supported with FSDP; use precision.weights=fp32, {otherwise}"
        )
    if optimizer not in OPTIMIZERS:
        raise ConfigError(f"optimizer: {optimizer} can't update slices (FSDP); use optimizer=adamw, {otherwise}")
    for name, value in switches.items():
        if value:
            given, off = ("true", "false") if value is True else (value, "null")
            raise ConfigError(f"{name}={given} is not supported with FSDP; use {name}={off}, {otherwise}")
    if plugin.activation_checkpointing:
        raise ConfigError("fsdp_activation_checkpointing is not supported; use gradient_checkpointing=true")
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise ConfigError("fsdp_offload_params is not supported; set it to false")


class Sharded(Layout):
    """A layout in which every process holds a slice of each weight."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator

    def prepare(
        self, model: Model, trained: NetworkWeights, optimizer: torch.optim.Optimizer
    ) -> tuple[TrainedWeights, torch.optim.Optimizer]:
        """Shard the model's denoiser, and let the optimizer update the slices.

        Autocast casts what is multiplied in bfloat16, as without FSDP. The policy that Accelerate sets would also cast
        biases, norms and the sums of gradients, and so train another network than one process does.
        """
        unsharded = _without_values(model.denoiser)
        if plugin := self.accelerator.state.fsdp_plugin:
            plugin.mixed_precision_policy = None
            wrap_blocks(plugin, model.denoiser)
        if self.accelerator.native_amp:
            model.denoiser.forward = autocast(self.accelerator)(model.denoiser.forward)
        model.denoiser, optimizer = self.accelerator.prepare(model.denoiser, optimizer)
        return ShardedWeights(model, unsharded, self.accelerator.is_main_process), optimizer

    def checkpoint_state(self, optimizer: torch.optim.Optimizer, **others: Stateful) -> dict[str, Stateful]:
        main = self.accelerator.is_main_process
        gathered = {name: GatheredState(part, main) for name, part in others.items()}
        return {"optimizer": GatheredOptimizerState(optimizer, main), **gathered}


def wrap_blocks(plugin: Any, network: nn.Module) -> None:
    """Gather the network block by block, as Diffusers names its blocks, if the launcher does not say what to wrap."""
    if "FSDP_AUTO_WRAP_POLICY" in os.environ or plugin.auto_wrap_policy is not None:
        return
    present = {type(module).__name__ for module in network.modules()}
    blocks: Any = getattr(network, "_no_split_modules", None) or []
    plugin.auto_wrap_policy = transformer_auto_wrap_policy
    plugin.transformer_cls_names_to_wrap = [name for name in blocks if name in present]


class ShardedWeights(TrainedWeights):
    """Trained weights of which this process holds slices; the optimizer updates the slices."""

    def __init__(self, model: Model, unsharded: nn.Module, writes: bool):
        """unsharded: a copy of the denoiser from before it was sharded, without values.

        writes: whether this process exports the model; the others take part in gathering and keep nothing.
        """
        self.model, self.unsharded, self.writes = model, unsharded, writes
        named = model.denoiser.named_parameters()
        self.weights: Mapping[str, Tensor] = {name: weight for name, weight in named if weight.requires_grad}

    def replaced(self, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> AbstractContextManager[None]:
        """See `TrainedWeights.replaced`; with `dtype` the model's denoiser is complete in the process that writes."""
        return self._gathered(tensors, dtype) if dtype else self._swapped(tensors)

    @contextmanager
    def _swapped(self, tensors: Mapping[str, Tensor]) -> Generator[None, None, None]:
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
                module.reshard()  # without a backward pass the outermost module keeps the weights that it gathered

    @contextmanager
    def _gathered(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Generator[None, None, None]:
        sharded = self.model.denoiser
        complete = {name: gather(tensors[name].detach(), self.writes).to(dtype) for name in self.weights}
        if self.writes:
            self.unsharded.load_state_dict(complete, strict=False, assign=True)
        self.model.denoiser = self.unsharded
        try:
            yield
        finally:
            self.model.denoiser = sharded
            self.unsharded.to("meta")

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.weights)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        load_weights(self.weights, state)


def _without_values(network: nn.Module) -> nn.Module:
    """A copy whose parameters take no memory."""
    empty = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=weight.requires_grad)
        for weight in network.parameters()
    }
    return copy.deepcopy(network, empty)


class GatheredState:
    """A sharded part of a checkpoint, read and written as complete tensors. Every process has to call its methods.

    keeps: whether this process gets the tensors; the others only take part.
    """

    def __init__(self, part: Stateful, keeps: bool):
        self.part, self.keeps = part, keeps

    def state_dict(self) -> dict[str, Any]:
        return self._complete(self.part.state_dict())

    def _complete(self, tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: self._complete(value) for key, value in tree.items()}
        return gather(tree, self.keeps)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        own = self.part.state_dict()
        self.part.load_state_dict({key: slice_like(own.get(key), value) for key, value in state.items()})


class GatheredOptimizerState(GatheredState):
    """The state of an optimizer whose weights are slices; the state of a weight is sliced as the weight is."""

    def __init__(self, optimizer: torch.optim.Optimizer, keeps: bool):
        super().__init__(optimizer, keeps)
        self.optimizer = optimizer

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_state(self.optimizer, state)
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        sliced = {
            index: {
                name: slice_like(weights[index], value) if _has_shape_of(weights[index], value) else value
                for name, value in states.items()
            }
            for index, states in state["state"].items()
        }
        self.optimizer.load_state_dict(state | {"state": sliced})


def _has_shape_of(weight: Tensor, value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape == weight.shape


def gather(value: Any, keeps: bool) -> Any:
    """The complete tensor, on the CPU, if `value` is a slice; an empty tensor in a process that does not keep it."""
    if not isinstance(value, DTensor):
        return value
    complete = value.full_tensor()
    return complete.cpu() if keeps else complete.new_empty(0)


def slice_like(own: Any, complete: Any) -> Any:
    """This process's slice of `complete` if `own` is a slice, else `complete`; processes do not communicate."""
    if not isinstance(own, DTensor):
        return complete
    sliced = distribute_tensor(complete.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
    return sliced.clone()  # a view would keep the complete tensor in memory
