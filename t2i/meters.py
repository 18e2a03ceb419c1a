"""What is measured between two lines of the log."""

import time

import torch
from torch import Tensor


class Meter:
    """Means over the examples and steps since the last reading. Its state is part of a checkpoint, so that a resumed run
    logs what the uninterrupted one would have logged; only the speed is its own."""

    def __init__(self, batch_size: int, max_grad_norm: float):
        self.batch_size, self.max_grad_norm = batch_size, max_grad_norm
        self.reset()

    def reset(self) -> None:
        self.sums = torch.zeros(5, dtype=torch.float64)  # loss, unweighted loss, grad norm, clipped steps, steps
        self.seconds, self.timed_steps = 0.0, 0
        self.clock = time.perf_counter()

    def examples(self, losses: Tensor, unweighted: Tensor) -> None:
        """Count the examples of one micro-batch, each [B]."""
        self.sums[0] += losses.detach().double().sum().cpu() / self.batch_size
        self.sums[1] += unweighted.detach().double().sum().cpu() / self.batch_size

    def step(self, grad_norm: Tensor) -> None:
        """Count one optimizer step; `grad_norm` is that before clipping."""
        norm = float(grad_norm)
        self.sums[2:] += torch.tensor([norm, norm > self.max_grad_norm, 1], dtype=torch.float64)
        now = time.perf_counter()
        self.seconds, self.timed_steps, self.clock = self.seconds + now - self.clock, self.timed_steps + 1, now

    def pause(self) -> None:
        """Don't count the time since the last step (validation, samples, checkpoints) as training time."""
        self.clock = time.perf_counter()

    def read(self) -> dict[str, float]:
        """The means since the last reading."""
        loss, unweighted, grad_norm, clipped = (self.sums[:4] / self.sums[4]).tolist()
        speed = self.batch_size * self.timed_steps / self.seconds if self.seconds else 0.0
        self.reset()
        return {
            "train/loss": loss,
            "train/loss_unweighted": unweighted,
            "train/grad_norm": grad_norm,
            "train/clipped": clipped,
            "speed/images_per_second": speed,
        }

    def state_dict(self) -> dict[str, Tensor]:
        return {"sums": self.sums}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.sums = state["sums"].clone()
