"""Several processes that train one network: how they were launched, and how they share the network and the work."""

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import AutocastKwargs, DistributedType, convert_outputs_to_fp32

from t2i.config import ConfigError
from t2i.optim.trained_weights import Trained
from t2i.runs.checkpoints import Stateful

log = logging.getLogger(__name__)


def start(mixed_precision: str) -> Accelerator:
    """As the environment says, which `accelerate launch` sets. ConfigError for what shards in another way than ours."""
    if _asked("DEEPSPEED"):
        raise ConfigError(
            "DeepSpeed is not supported; use accelerate launch --use_fsdp --fsdp_version 2, which shards the weights "
            "as well, or --multi_gpu"
        )
    # With "true", the default of `accelerate launch`, Transformers would leave the text encoders of all processes but
    # the first empty: it expects that every network is sharded, and theirs are not.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    AcceleratorState._reset_state()  # an earlier job of the same process may have had another precision
    # Each weight is used once in a forward pass; copies that autocast kept to its end would only take room.
    uncached = AutocastKwargs(cache_enabled=False)
    accelerator = Accelerator(mixed_precision=mixed_precision, kwargs_handlers=[uncached])
    sharded = accelerator.distributed_type == DistributedType.FSDP
    if sharded and accelerator.state.fsdp_plugin.fsdp_version != 2:
        raise ConfigError(
            "FSDP 1 is not supported; use accelerate launch --use_fsdp --fsdp_version 2 (fsdp_version: 2 in "
            "accelerate's file), or --multi_gpu"
        )
    if _asked("FSDP") and not sharded:
        log.warning("FSDP shards over several GPUs only: here each process holds the whole network")
    return accelerator


def _asked(engine: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true"


def autocast(accelerator: Accelerator) -> Callable[[Callable], Callable]:
    """What turns a network's forward method into one that multiplies as the accelerator says, and returns float32."""
    return lambda forward: convert_outputs_to_fp32(accelerator.autocast()(forward))


def shares(work: Sequence[Any], accelerator: Accelerator) -> list[Any]:
    """This process's pieces of some work: equally many for each process, so some pieces are done twice.

    Where the network is sharded, every process takes part in each of its predictions.
    """
    index, number = accelerator.process_index, accelerator.num_processes
    rounds = -(-len(work) // number)
    return [work[place % len(work)] for place in range(index, rounds * number, number)]


class Replicated:
    """Every process holds the whole network; gradients are averaged."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator

    def prepare(
        self, model: Any, trained: Trained, optimizer: torch.optim.Optimizer
    ) -> tuple[Trained, torch.optim.Optimizer]:
        """Let the model's denoiser and the optimizer work with the other processes; returns what is then trained."""
        model.denoiser, optimizer = self.accelerator.prepare(model.denoiser, optimizer)
        return trained, optimizer

    def parts(self, **parts: Stateful) -> dict[str, Stateful]:
        """The parts of a checkpoint, as any number of processes can load them."""
        return parts
