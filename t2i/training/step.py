"""An optimizer step: add noise, predict, weigh, step, average."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from t2i.data.batches import Batch
from t2i.diffusion.losses import Weighting
from t2i.diffusion.process import Diffusion
from t2i.diffusion.residuals import squared_error
from t2i.models.model import Model
from t2i.optim.bad_steps import step_if_finite
from t2i.optim.ema import WeightAverage
from t2i.optim.trained_weights import TrainedWeights


class Counted(NamedTuple):
    """What is counted of the examples of a micro-batch, each [B]."""

    losses: Tensor  # weighted
    squared_errors: Tensor
    t: Tensor
    items: Tensor  # see `Batch`


@dataclass(frozen=True)
class Outcome:
    """What is counted of an optimizer step."""

    examples: list[Counted]  # of each micro-batch
    grad_norm: Tensor  # before clipping; where it is not finite, the weights stay as they were
    loss_scale: Tensor | None = None  # with which the gradient was computed, in fp16


class OptimizerStep(Protocol):
    """Takes one optimizer step with the next micro-batches of this process, `accumulation` of them."""

    def __call__(self, batches: Iterator[Batch], accumulation: int) -> Outcome: ...


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """What turns gradients into a step of the trained weights, and the weights' moving average."""

    trained: TrainedWeights
    optimizer: Any  # of PyTorch, or what has its param_groups and state
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler
    ema: WeightAverage
    max_grad_norm: float  # longer gradients are clipped to this; infinity: none are


@dataclass(frozen=True, kw_only=True)
class PyTorchStep(OptimizerStep):
    """A step of the model's denoiser. batch_size: over all micro-batches and processes."""

    model: Model
    diffusion: Diffusion
    loss: Weighting
    optimization: Optimization
    batch_size: int
    accelerator: Accelerator

    def __call__(self, batches: Iterator[Batch], accumulation: int) -> Outcome:
        accelerator, optimizer, examples = self.accelerator, self.optimization.optimizer, list[Counted]()
        for micro in range(accumulation):
            batch = next(batches).to(accelerator.device)
            last = micro == accumulation - 1
            with nullcontext() if last else accelerator.no_sync(self.model.denoiser):
                noised = self.diffusion.add_noise(batch.x0, batch.noise, batch.t, batch.input_noise)
                prediction = self.model.denoise(noised.x, noised.time, batch.text)
                losses = self.loss(prediction, noised, batch.weight)
                # Processes average their gradients; this makes the average that of the full batch.
                accelerator.backward(losses.sum() * (accelerator.num_processes / self.batch_size))
            squares = squared_error(prediction.detach(), noised)
            examples.append(Counted(losses.detach(), squares, noised.t, batch.items))
        weights = list(self.optimization.trained.weights.values())
        grad_norm = clip_grad_norm(accelerator, weights, self.optimization.max_grad_norm)
        loss_scale = scale_of(accelerator)
        step_if_finite(optimizer, grad_norm, accelerator.scaler)
        optimizer.zero_grad()
        self.optimization.ema.update()
        return Outcome(examples, grad_norm, loss_scale)


def scale_of(accelerator: Accelerator) -> Tensor | None:
    """What fp16 multiplies the loss with, which changes from step to step; None: nothing."""
    scaler = accelerator.scaler
    return None if scaler is None else scaler.scale(torch.ones((), device=accelerator.device))


def clip_grad_norm(accelerator: Accelerator, weights: Sequence[Tensor], max_norm: float) -> Tensor:
    """Clip the gradients to the total norm `max_norm`; returns their norm before.

    Like torch.nn.utils.clip_grad_norm_, but on a CPU shorter gradients are left alone instead of being multiplied by 1.
    """
    accelerator.unscale_gradients()
    total = get_total_norm([weight.grad for weight in weights if weight.grad is not None])
    norm = total.full_tensor() if isinstance(total, DTensor) else total  # of sharded gradients
    if norm.device.type != "cpu" or not norm <= max_norm:  # or not finite
        clip_grads_with_norm_(weights, max_norm, total)
    return norm
