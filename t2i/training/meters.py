"""Training metrics between two lines of the log."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from t2i.evaluation.metrics import NUM_SNR_BINS
from t2i.hardware.uploads import with_float64

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")
UNCHECKED = 100  # steps on a GPU, at most, until one without a finite gradient is noticed


@dataclass(frozen=True)
class Taken:
    """What the host has still to be told of an optimizer step."""

    step: int
    finite: Tensor  # whether its gradient was
    examples: list[tuple[Tensor, Tensor, Tensor]]  # of each micro-batch: which losses are finite, timesteps, images
    loss_scale: Tensor | None  # with which its gradient was computed, in fp16


class Meter:
    """Means over the examples and steps since the last reading; values that are not finite are counted, not averaged.

    It adds up on the device, and asks the device only when it is read or saved (on a CPU, where asking costs nothing,
    after each step). The state is part of a checkpoint, so a resumed run logs the same values, except speed, as an
    uninterrupted one.
    """

    def __init__(
        self,
        batch_size: int,
        max_grad_norm: float,
        num_timesteps: int,
        max_bad_steps: int,
        device: torch.device | None = None,
    ):
        """device: None means the CPU."""
        self.batch_size, self.max_grad_norm, self.num_timesteps = batch_size, max_grad_norm, num_timesteps
        self.max_bad_steps = max_bad_steps
        self.device = with_float64(device or torch.device("cpu"))
        self.bad_steps = 0  # in a row
        self.unchecked: list[Taken] = []
        self.counted: list[tuple[Tensor, Tensor, Tensor]] = []  # the examples of the step so far
        self.reset()

    def reset(self) -> None:
        # Loss, unweighted loss, examples; and grad norm, clipped steps, steps, skipped steps.
        self.bins = torch.zeros(3, NUM_SNR_BINS, dtype=torch.float64, device=self.device)
        self.sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        self.seconds, self.timed_steps = 0.0, 0
        self.clock = time.perf_counter()

    def examples(self, losses: Tensor, unweighted: Tensor, t: Tensor, items: Tensor) -> None:
        """Count the examples of one micro-batch, each [B]."""
        rows = torch.stack([losses.detach(), unweighted.detach(), torch.ones_like(losses)]).to(self.device).double()
        t, finite = t.to(self.device).long(), rows.isfinite().all(0)
        snr_bin = (self.num_timesteps - 1 - t) * NUM_SNR_BINS // self.num_timesteps
        self.bins.index_add_(1, snr_bin, rows.masked_fill(~finite, 0))
        self.counted.append((finite, t, items))

    def step(self, step: int, grad_norm: Tensor, loss_scale: Tensor | None = None) -> None:
        """Count one optimizer step, which is skipped if `grad_norm`, that before clipping, is not finite.

        loss_scale: that of the step, in fp16.
        """
        self._add(step, grad_norm, loss_scale)
        self._tick()
        if self.device.type == "cpu" or len(self.unchecked) >= UNCHECKED:
            self.check()

    def _add(self, step: int, grad_norm: Tensor, loss_scale: Tensor | None) -> None:
        norm = grad_norm.detach().to(self.device).double()
        finite = norm.isfinite()
        counted = torch.stack([norm, norm > self.max_grad_norm, finite]).masked_fill(~finite, 0)
        self.sums += torch.cat([counted, ~finite[None]])
        self.unchecked.append(Taken(step, finite, self.counted, loss_scale))
        self.counted = []

    def _tick(self) -> None:
        """A step has been taken since the clock was last looked at."""
        now = time.perf_counter()
        self.seconds, self.timed_steps, self.clock = self.seconds + now - self.clock, self.timed_steps + 1, now

    def check(self) -> None:
        """Warn of the steps since the last check that were skipped; waits for the device.

        Raises FloatingPointError when `max_bad_steps` in a row were.
        """
        if not self.unchecked:
            return
        steps, self.unchecked = self.unchecked, []
        finite_steps = self._awaited(lambda: torch.stack([taken.finite for taken in steps]).tolist())
        for taken, finite in zip(steps, finite_steps, strict=True):
            if finite:
                self.bad_steps = 0
            else:
                self._warn(taken)

    def _awaited(self, ask: Callable[[], Answer]) -> Answer:
        """What the device answers; the time that it still needs for the steps before counts as theirs."""
        began = time.perf_counter()
        answer = ask()
        self.clock = time.perf_counter()
        self.seconds += self.clock - began
        return answer

    def _warn(self, taken: Taken) -> None:
        step, suspects = taken.step, list[str]()
        for finite, t, items in taken.examples:
            pairs = zip(t[~finite].tolist(), items[~finite.cpu()].tolist(), strict=True)
            suspects += [f"timestep {at} of image {item}" for at, item in pairs]
        loss_scale = float(taken.loss_scale) if taken.loss_scale is not None else 1.0
        if loss_scale > 1 and not suspects:  # the scaler looks for the largest scale that fits
            log.info("step %d is skipped: its gradient overflows fp16 at a loss scale of %g", step, loss_scale)
            return
        where = ", ".join(suspects[:8]) or "in no single example"
        log.warning("step %d is skipped: its gradient is not finite; loss not finite: %s", step, where)
        self.bad_steps += 1
        if self.bad_steps >= self.max_bad_steps:
            raise FloatingPointError(
                f"{self.max_bad_steps} steps in a row had no finite gradient, the last at step {step} (loss not "
                f"finite: {where}); try a lower optimizer.lr or max_grad_norm, or precision=fp32 or bf16"
            )

    def pause(self) -> None:
        """Exclude the time since the last step (validation, samples, checkpoints) from the training speed."""
        self.clock = time.perf_counter()

    def gather(self, accelerator: Accelerator) -> None:
        """Add the counts of all processes to those of the main process; every process must call it."""
        self.check()
        if accelerator.num_processes > 1:
            self.bins = accelerator.reduce(self.bins.to(accelerator.device)).to(self.device)
            if not accelerator.is_main_process:
                self.bins.zero_()

    def read(self) -> dict[str, float]:
        """The means since the last reading."""
        self.check()
        counts, sums = self.bins.cpu(), self.sums.cpu()
        loss, unweighted = (counts[:2].sum(1) / counts[2].sum()).tolist()
        grad_norm, clipped = (sums[:2] / sums[2]).tolist()
        skipped = int(sums[3])
        bins = enumerate((counts[:2] / counts[2]).T.tolist())  # NaN where there was no example
        speed = self.batch_size * self.timed_steps / self.seconds if self.seconds else 0.0
        self.reset()
        per_bin = {
            f"train/snr_bin_{i}/{name}": value
            for i, values in bins
            for name, value in zip(("loss", "loss_unweighted"), values, strict=True)
        }
        metrics = {
            "train/loss": loss,
            "train/loss_unweighted": unweighted,
            "train/grad_norm": grad_norm,
            "train/clipped": clipped,
            "train/skipped": skipped,
            "speed/images_per_second": speed,
            **per_bin,
        }
        return {name: value for name, value in metrics.items() if not math.isnan(value)}  # no example: no mean

    def state_dict(self) -> dict[str, Tensor]:
        self.check()
        return {"bins": self.bins, "sums": self.sums, "bad_steps": torch.tensor(self.bad_steps)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.bins, self.sums = (state[name].to(self.device, copy=True) for name in ("bins", "sums"))
        self.bad_steps = int(state["bad_steps"])
