"""The training loop: encode, add noise, predict, weigh, step."""

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from t2i.data.loader import MicroBatches, Readable, loader
from t2i.diffusion.losses import Weighting
from t2i.diffusion.process import Diffusion
from t2i.diffusion.residuals import squared_error
from t2i.models.model import Model
from t2i.optim.bad_steps import step_if_finite
from t2i.optim.ema import WeightAverage
from t2i.optim.trained_weights import TrainedWeights
from t2i.rng import step_seed
from t2i.training.meters import Meter


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long, how large, how often. `*_every` are in optimizer steps; 0 means never."""

    seed: int
    steps: int
    first_step: int  # the number of steps that are done already: 0, or the step of the checkpoint
    batch_size: int  # images per optimizer step, over all processes
    micro_batch_size: int  # per process and forward pass
    num_workers: int
    log_every: int
    validate_every: int
    sample_every: int
    evaluate_every: int
    save_every: int
    keep_at: Collection[int] = ()  # steps with a checkpoint besides those
    stop_at: int | None  # pause after this step, with a checkpoint; the learning rate is still that of all steps

    @property
    def last_step(self) -> int:
        return self.steps if self.stop_at is None else min(self.steps, self.stop_at)

    def due(self, step: int, every: int) -> bool:
        """Whether something that happens every `every` steps, and at the end, is due after `step` steps."""
        return every > 0 and (step % every == 0 or step == self.steps)


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """What turns gradients into a step of the trained weights, and the weights' moving average."""

    trained: TrainedWeights
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler
    ema: WeightAverage
    max_grad_norm: float  # longer gradients are clipped to this; infinity: none are


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What is measured, and what happens between steps; called on every process, with the number of steps done."""

    meter: Meter
    validate: Callable[[int], dict[str, float]]
    sample: Callable[[int], None]
    evaluate: Callable[[int], dict[str, float]]  # by images
    log: Callable[[int, dict[str, float]], None]
    snapshot: Callable[[int], None]  # of the average, if one is due
    save: Callable[[int], Any]  # a checkpoint
    should_stop: Callable[[int], bool]  # asked after every step; the same answer on every process
    ends_early: Callable[[], bool]  # asked after every validation, likewise: whether it is time to end the run


def train(  # noqa: C901  (the loop is meant to be read as one page)
    model: Model,
    diffusion: Diffusion,
    loss: Weighting,
    optimization: Optimization,
    examples: Readable,
    schedule: Schedule,
    hooks: Hooks,
    accelerator: Accelerator,
) -> int:
    """Train the model's denoiser from the schedule's first step to its last; returns the number of steps done.

    Fewer than `schedule.steps` if the run was told to stop or pause, or ends early; then there is a checkpoint of that
    step.
    """
    optimizer, meter = optimization.optimizer, hooks.meter
    weights = list(optimization.trained.weights.values())
    micro_batches = MicroBatches(
        schedule.batch_size,
        schedule.micro_batch_size,
        schedule.first_step,
        schedule.last_step,
        rank=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )
    batches = loader(examples, micro_batches, schedule.num_workers)
    if schedule.first_step == 0 and schedule.sample_every:
        hooks.sample(0)
    if schedule.first_step == 0 and schedule.validate_every:
        hooks.log(0, hooks.validate(0))

    meter.pause()
    done = schedule.first_step
    for step in range(schedule.first_step, schedule.last_step):
        torch.manual_seed(step_seed(schedule.seed, step, accelerator.process_index))
        for micro in range(micro_batches.accumulation):
            batch = next(batches).to(accelerator.device)
            last = micro == micro_batches.accumulation - 1
            with nullcontext() if last else accelerator.no_sync(model.denoiser):
                noised = diffusion.add_noise(batch.x0, batch.noise, batch.t, batch.input_noise)
                prediction = model.denoise(noised.x, noised.time, batch.text)
                losses = loss(prediction, noised, batch.weight)
                # Processes average their gradients; this makes the average that of the full batch.
                accelerator.backward(losses.sum() * (accelerator.num_processes / schedule.batch_size))
            meter.examples(losses, squared_error(prediction.detach(), noised), noised.t, batch.items)
        grad_norm = clip_grad_norm(accelerator, weights, optimization.max_grad_norm)
        meter.step(step, grad_norm)
        step_if_finite(optimizer, grad_norm, accelerator.scaler)
        optimizer.zero_grad()
        learning_rate = optimization.lr_scheduler.get_last_lr()[0]
        optimization.lr_scheduler.step()
        optimization.ema.update()

        done, metrics = step + 1, {}
        hooks.snapshot(done)
        stopping = done < schedule.steps and (hooks.should_stop(done) or done == schedule.last_step)
        saving = stopping or schedule.due(done, schedule.save_every) or done in schedule.keep_at
        if saving or schedule.due(done, schedule.log_every):
            meter.gather(accelerator)
        if schedule.due(done, schedule.log_every):
            metrics |= meter.read() | {"train/lr": learning_rate}
        if schedule.due(done, schedule.validate_every):
            metrics |= hooks.validate(done)
        if schedule.due(done, schedule.sample_every):
            hooks.sample(done)
        if schedule.due(done, schedule.evaluate_every):
            metrics |= hooks.evaluate(done)
        if metrics:
            hooks.log(done, metrics)
        if schedule.due(done, schedule.validate_every) and hooks.ends_early():
            stopping = saving = True
            meter.gather(accelerator)
        if saving:
            hooks.save(done)
        if stopping:
            break
        meter.pause()
    return done


def clip_grad_norm(accelerator: Accelerator, weights: Sequence[Tensor], max_norm: float) -> Tensor:
    """Clip the gradients to the total norm `max_norm`; returns their norm before.

    Like torch.nn.utils.clip_grad_norm_, but on a CPU shorter gradients are left alone instead of being multiplied by 1.
    """
    accelerator.unscale_gradients()
    norm = get_total_norm([weight.grad for weight in weights if weight.grad is not None])
    if norm.device.type != "cpu" or not norm <= max_norm:  # or not finite
        clip_grads_with_norm_(weights, max_norm, norm)
    return norm
