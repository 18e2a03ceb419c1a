"""The training loop: encode, add noise, predict, weigh, step."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from t2i.data.loader import MicroBatches, Readable, loader
from t2i.diffusion.losses import Weighting
from t2i.diffusion.process import Diffusion
from t2i.diffusion.residuals import squared_error
from t2i.optim.ema import WeightAverage
from t2i.optim.trained_weights import TrainedWeights
from t2i.rng import step_seed
from t2i.runs import checkpoints
from t2i.runs.checkpoints import Stateful
from t2i.runs.folder import Run
from t2i.training.meters import Meter


@dataclass(frozen=True)
class Schedule:
    """How long, how large, how often. `*_every` are in optimizer steps; 0 means never."""

    seed: int
    steps: int
    batch_size: int  # images per optimizer step, over all processes
    micro_batch_size: int  # per process and forward pass
    num_workers: int
    max_grad_norm: float  # 0: gradients are not clipped
    max_bad_steps: int  # in a row without a finite gradient, before the run ends
    log_every: int
    validate_every: int
    sample_every: int
    save_every: int
    keep_checkpoints: int
    stop_at: int | None  # pause after this step, with a checkpoint; the learning rate is still that of all steps

    @property
    def last_step(self) -> int:
        return self.steps if self.stop_at is None else min(self.steps, self.stop_at)

    def due(self, step: int, every: int) -> bool:
        """Whether something that is done every `every` steps, and at the end, is due after `step` steps."""
        return every > 0 and (step % every == 0 or step == self.steps)


@dataclass(frozen=True)
class Observers:
    """What is done beside training; called on every process, with the number of steps done."""

    validate: Callable[[int], dict[str, float]]
    sample: Callable[[int], None]
    log: Callable[[int, dict[str, float]], None]
    stop: Callable[[], bool]  # asked after every step; the same answer on every process


def train(
    schedule: Schedule,
    model,
    trained: TrainedWeights,
    diffusion: Diffusion,
    loss: Weighting,
    optimizer: torch.optim.Optimizer,
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
    ema: WeightAverage,
    examples: Readable,
    accelerator: Accelerator,
    state: Mapping[str, Stateful],
    observers: Observers,
    run: Run,
    checkpoint: Path | None,
) -> int:
    """Train the model's denoiser to the last step, from `checkpoint`, or else from the start.

    state: what checkpoints hold beside the counts of the meter. Returns the number of steps done: fewer than all where
    it was to stop before, with a checkpoint there.
    """
    weights = list(trained.weights.values())
    max_grad_norm = schedule.max_grad_norm or float("inf")
    meter = Meter(schedule.batch_size, max_grad_norm, len(diffusion), schedule.max_bad_steps)
    parts = {**state, "meter": meter}
    start = checkpoints.load(checkpoint, parts) if checkpoint else 0
    if not accelerator.is_main_process:
        meter.reset()  # what was counted before is with the main process
    ranks = {"rank": accelerator.process_index, "num_processes": accelerator.num_processes}
    micro_batches = MicroBatches(schedule.batch_size, schedule.micro_batch_size, start, schedule.last_step, **ranks)
    batches = loader(examples, micro_batches, schedule.num_workers)
    if start == 0 and schedule.sample_every:
        observers.sample(0)
    if start == 0 and schedule.validate_every:
        observers.log(0, observers.validate(0))

    meter.pause()
    done = start
    for step in range(start, schedule.last_step):
        torch.manual_seed(step_seed(schedule.seed, step, accelerator.process_index))
        for micro in range(micro_batches.accumulation):
            batch = next(batches).to(accelerator.device)
            last = micro == micro_batches.accumulation - 1
            with nullcontext() if last else accelerator.no_sync(model.denoiser):
                noised = diffusion.add_noise(batch.x0, batch.noise, batch.t, batch.input_noise)
                prediction = model.denoise(noised.x, noised.time, batch.text)
                losses = loss(prediction, noised)
                # Processes average their gradients; this makes the average that of the whole batch.
                accelerator.backward(losses.sum() * (accelerator.num_processes / schedule.batch_size))
            meter.examples(losses, squared_error(prediction.detach(), noised), noised.t, batch.items)
        finite = meter.step(step, clip_grad_norm(accelerator, weights, max_grad_norm))
        if finite or accelerator.scaler is not None:  # which skips the step itself, and scales less
            optimizer.step()
        optimizer.zero_grad()
        learning_rate = lr_scheduler.get_last_lr()[0]
        lr_scheduler.step()
        ema.update()

        done, metrics = step + 1, {}
        stopping = done < schedule.steps and (observers.stop() or done == schedule.last_step)
        saving = stopping or schedule.due(done, schedule.save_every)
        if saving or schedule.due(done, schedule.log_every):
            meter.gather(accelerator)
        if schedule.due(done, schedule.log_every):
            metrics |= meter.read() | {"train/lr": learning_rate}
        if schedule.due(done, schedule.validate_every):
            metrics |= observers.validate(done)
        if schedule.due(done, schedule.sample_every):
            observers.sample(done)
        if metrics:
            observers.log(done, metrics)
        if saving:
            checkpoints.save(run.checkpoints, done, parts, schedule.keep_checkpoints, run.validated(), run.writes)
        if stopping:
            break
        meter.pause()
    return done


def clip_grad_norm(accelerator: Accelerator, weights: Sequence[Tensor], max_norm: float) -> float:
    """The norm of all gradients, which are shortened to `max_norm` where it is larger.

    As torch.nn.utils.clip_grad_norm_ does, which multiplies shorter ones, too, by 1.
    """
    accelerator.unscale_gradients()
    total = get_total_norm([weight.grad for weight in weights if weight.grad is not None])
    norm = float(total)
    if not norm <= max_norm:  # or not finite
        clip_grads_with_norm_(weights, max_norm, total)
    return norm
