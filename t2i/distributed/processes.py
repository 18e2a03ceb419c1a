"""Several processes that train one network: how they were launched, and how they divide the network and the work."""

import logging
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    AutocastKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    broadcast_object_list,
    convert_outputs_to_fp32,
    gather_object,
)

from t2i.config import ConfigError
from t2i.models.model import Model
from t2i.optim.optimizer_state import CheckedOptimizer
from t2i.optim.trained_weights import NetworkWeights, TrainedWeights
from t2i.runs import checkpoints
from t2i.runs.checkpoints import Stateful

log = logging.getLogger(__name__)
Work = TypeVar("Work")


def start(mixed_precision: str, timeout: float = 60, on_cpu: bool = False) -> Accelerator:
    """Join the processes that the environment names, as `accelerate launch` sets it.

    mixed_precision: Accelerate's no, fp16 or bf16. timeout: minutes that a process waits for the others before it gives
    up; it has to outlast what the main process does alone, such as writing a checkpoint. on_cpu: leave a GPU alone.
    ConfigError for engines that are not supported, and for processes that would each train by themselves.
    """
    started = int(os.environ.get("WORLD_SIZE", 1))
    if _requested("DEEPSPEED"):
        raise ConfigError(
            "DeepSpeed is not supported; use accelerate launch --use_fsdp --fsdp_version 2, which shards the weights "
            "as well, or --multi_gpu"
        )
    # With "true", the default of `accelerate launch`, Transformers would leave the text encoders of all processes but
    # the first empty: it expects that every network is sharded, but text encoders are not.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    forget_earlier_job()
    # Each weight is used once in a forward pass, so keeping its cast copy until the end would only cost memory.
    uncached = AutocastKwargs(cache_enabled=False)
    patient = InitProcessGroupKwargs(timeout=timedelta(minutes=timeout))
    on_cpu = on_cpu or (started > 1 and not torch.accelerator.is_available())  # as torchrun doesn't say
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=mixed_precision, kwargs_handlers=[uncached, patient])
    if mixed_precision == "fp16" and accelerator.device.type == "cpu":  # where Accelerate leaves fp16 out
        accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler("cpu")
    if accelerator.num_processes != started:
        raise ConfigError(
            f"{started} processes were started (WORLD_SIZE), but they can't work together on {accelerator.device}; "
            "start one"
        )
    refuse_fsdp_1(accelerator)
    if _requested("FSDP") and accelerator.distributed_type != DistributedType.FSDP:
        log.warning("FSDP shards over several GPUs only: here each process holds the complete network")
    return accelerator


def forget_earlier_job() -> None:
    """Let the next Accelerator choose its precision anew.

    Accelerate keeps the first choice of a process in a private singleton, also for the later jobs of a sweep.
    """
    AcceleratorState._reset_state()


def refuse_fsdp_1(accelerator: Accelerator) -> None:
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    plugin = accelerator.state.fsdp_plugin
    if plugin is not None and plugin.fsdp_version != 2:
        raise ConfigError(
            "FSDP 1 is not supported; use accelerate launch --use_fsdp --fsdp_version 2 (fsdp_version: 2 in "
            "accelerate's file), or --multi_gpu"
        )


def _requested(engine: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true"


def autocast(accelerator: Accelerator) -> Callable[[Callable], Callable]:
    """A decorator for a network's forward method: it multiplies in the accelerator's precision and returns float32."""
    return lambda forward: convert_outputs_to_fp32(accelerator.autocast()(forward))


def assigned(work: Sequence[Work], accelerator: Accelerator) -> list[Work]:
    """The pieces of some work that this process does.

    All processes get equally many, so that some pieces are done twice: where the network is sharded, every process
    takes part in each prediction.
    """
    rank, processes = accelerator.process_index, accelerator.num_processes
    rounds = -(-len(work) // processes)
    return [work[index % len(work)] for index in range(rank, rounds * processes, processes)]


class Together(checkpoints.Processes):
    """The processes of an accelerator, which agree on a checkpoint."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator, self.is_main = accelerator, accelerator.is_main_process

    def told(self, value: Any) -> Any:
        return broadcast_object_list([value])[0]

    def all_agree(self, answer: bool) -> bool:
        return all(gather_object([answer]))


class Layout(Protocol):
    """How the processes divide the network."""

    def prepare(
        self, model: Model, trained: NetworkWeights, optimizer: torch.optim.Optimizer
    ) -> tuple[TrainedWeights, torch.optim.Optimizer]:
        """Connect the model's denoiser and the optimizer with the other processes.

        The model gets the denoiser for this layout; returns the weights and the optimizer to go on with.
        """
        ...

    def checkpoint_state(self, optimizer: torch.optim.Optimizer, **others: Stateful) -> dict[str, Stateful]:
        """What a checkpoint holds, by name, in a form that any number of processes can load."""
        ...


class Replicated(Layout):
    """Every process holds the complete network; gradients are averaged."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator

    def prepare(
        self, model: Model, trained: NetworkWeights, optimizer: torch.optim.Optimizer
    ) -> tuple[TrainedWeights, torch.optim.Optimizer]:
        model.denoiser, optimizer = self.accelerator.prepare(model.denoiser, optimizer)
        return trained, optimizer

    def checkpoint_state(self, optimizer: torch.optim.Optimizer, **others: Stateful) -> dict[str, Stateful]:
        return {"optimizer": CheckedOptimizer(optimizer), **others}
