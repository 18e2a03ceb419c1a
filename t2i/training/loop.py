"""The training loop: step after step, and what is logged, validated, sampled and saved between them.

What happens in a step is in t2i.training.step.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import LRScheduler

from t2i.data.loader import MicroBatches, Readable, loader
from t2i.rng import step_seed
from t2i.training.meters import Meter
from t2i.training.step import OptimizerStep


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
    take_step: OptimizerStep,
    lr_scheduler: LRScheduler,
    examples: Readable,
    schedule: Schedule,
    hooks: Hooks,
    accelerator: Accelerator,
) -> int:
    """Train from the schedule's first step to its last; returns the number of steps done.

    Fewer than `schedule.steps` if the run was told to stop or pause, or ends early; then there is a checkpoint of that
    step.
    """
    meter = hooks.meter
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
        outcome = take_step(batches, micro_batches.accumulation)
        for counted in outcome.examples:
            meter.examples(*counted)
        meter.step(step, outcome.grad_norm, outcome.loss_scale)
        learning_rate = lr_scheduler.get_last_lr()[0]
        lr_scheduler.step()

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
