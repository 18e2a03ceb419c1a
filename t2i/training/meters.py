"""Training metrics between two lines of the log."""

import logging
import math
import time

import torch
from accelerate import Accelerator
from torch import Tensor

from t2i.evaluation.metrics import NUM_SNR_BINS

log = logging.getLogger(__name__)


class Meter:
    """Means over the examples and steps since the last reading; values that are not finite are counted, not averaged.

    The state is part of a checkpoint, so a resumed run logs the same values, except speed, as an uninterrupted one.
    """

    def __init__(self, batch_size: int, max_grad_norm: float, num_timesteps: int, max_bad_steps: int):
        self.batch_size, self.max_grad_norm, self.num_timesteps = batch_size, max_grad_norm, num_timesteps
        self.max_bad_steps = max_bad_steps
        self.bad_steps = torch.tensor(0)  # in a row
        self.suspects: list[tuple[int, int]] = []  # timestep and image of each example in them whose loss is not finite
        self.reset()

    def reset(self) -> None:
        self.bins = torch.zeros(3, NUM_SNR_BINS, dtype=torch.float64)  # loss, unweighted loss, examples
        self.sums = torch.zeros(4, dtype=torch.float64)  # grad norm, clipped steps, steps, skipped steps
        self.seconds, self.timed_steps = 0.0, 0
        self.clock = time.perf_counter()

    def examples(self, losses: Tensor, unweighted: Tensor, t: Tensor, items: Tensor) -> None:
        """Count the examples of one micro-batch, each [B]."""
        rows = torch.stack([losses.detach(), unweighted.detach(), torch.ones_like(losses)]).cpu().double()
        t, finite = t.cpu().long(), rows.isfinite().all(0)
        self.suspects += zip(t[~finite].tolist(), items.cpu()[~finite].tolist(), strict=True)
        snr_bin = (self.num_timesteps - 1 - t) * NUM_SNR_BINS // self.num_timesteps
        self.bins.index_add_(1, snr_bin[finite], rows[:, finite])

    def step(self, step: int, grad_norm: float) -> bool:
        """Count one optimizer step; `grad_norm` is that before clipping. Returns whether it is finite.

        Raises FloatingPointError when `max_bad_steps` in a row were not.
        """
        finite = math.isfinite(grad_norm)
        counted = [grad_norm, grad_norm > self.max_grad_norm, 1, 0] if finite else [0, 0, 0, 1]
        self.sums += torch.tensor(counted, dtype=torch.float64)
        now = time.perf_counter()
        self.seconds, self.timed_steps, self.clock = self.seconds + now - self.clock, self.timed_steps + 1, now
        if finite:
            self.bad_steps.zero_()
            self.suspects.clear()
            return True
        self.bad_steps += 1
        where = ", ".join(f"timestep {t} of image {item}" for t, item in self.suspects[:8]) or "in no single example"
        log.warning("step %d is skipped: its gradient is not finite; loss not finite: %s", step, where)
        if self.bad_steps >= self.max_bad_steps:
            raise FloatingPointError(
                f"{self.max_bad_steps} steps in a row had no finite gradient, the last at step {step} (loss not "
                f"finite: {where}); try a lower optimizer.lr or max_grad_norm, or precision=fp32 or bf16"
            )
        return False

    def pause(self) -> None:
        """Exclude the time since the last step (validation, samples, checkpoints) from the training speed."""
        self.clock = time.perf_counter()

    def gather(self, accelerator: Accelerator) -> None:
        """Add the counts of all processes to those of the main process; every process must call it."""
        if accelerator.num_processes > 1:
            self.bins = accelerator.reduce(self.bins.to(accelerator.device)).cpu()
            if not accelerator.is_main_process:
                self.bins.zero_()

    def read(self) -> dict[str, float]:
        """The means since the last reading."""
        loss, unweighted = (self.bins[:2].sum(1) / self.bins[2].sum()).tolist()
        grad_norm, clipped = (self.sums[:2] / self.sums[2]).tolist()
        skipped = int(self.sums[3])
        bins = enumerate((self.bins[:2] / self.bins[2]).T.tolist())  # NaN where there was no example
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
        return {"bins": self.bins, "sums": self.sums, "bad_steps": self.bad_steps}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.bins, self.sums = state["bins"].clone(), state["sums"].clone()
        self.bad_steps = state["bad_steps"].clone()
