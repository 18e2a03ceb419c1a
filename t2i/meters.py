"""What is measured between two lines of the log."""

import time

import torch
from torch import Tensor

from t2i.validation import NUM_SNR_BINS


class Meter:
    """Means over the examples and steps since the last reading.

    Its state is part of a checkpoint: a resumed run logs what the uninterrupted one would have, but for the speed.
    """

    def __init__(self, batch_size: int, max_grad_norm: float, num_timesteps: int):
        self.batch_size, self.max_grad_norm, self.num_timesteps = batch_size, max_grad_norm, num_timesteps
        self.reset()

    def reset(self) -> None:
        self.bins = torch.zeros(3, NUM_SNR_BINS, dtype=torch.float64)  # loss, unweighted loss, examples
        self.sums = torch.zeros(3, dtype=torch.float64)  # grad norm, clipped steps, steps
        self.seconds, self.timed_steps = 0.0, 0
        self.clock = time.perf_counter()

    def examples(self, losses: Tensor, unweighted: Tensor, t: Tensor) -> None:
        """Count the examples of one micro-batch, each [B]."""
        snr_bin = (self.num_timesteps - 1 - t.cpu()) * NUM_SNR_BINS // self.num_timesteps
        rows = torch.stack([losses.detach(), unweighted.detach(), torch.ones_like(losses)])
        self.bins.index_add_(1, snr_bin, rows.cpu().double())

    def step(self, grad_norm: Tensor) -> None:
        """Count one optimizer step; `grad_norm` is that before clipping."""
        norm = float(grad_norm)
        self.sums += torch.tensor([norm, norm > self.max_grad_norm, 1], dtype=torch.float64)
        now = time.perf_counter()
        self.seconds, self.timed_steps, self.clock = self.seconds + now - self.clock, self.timed_steps + 1, now

    def pause(self) -> None:
        """Don't count the time since the last step (validation, samples, checkpoints) as training time."""
        self.clock = time.perf_counter()

    def read(self) -> dict[str, float]:
        """The means since the last reading."""
        loss, unweighted = (self.bins[:2].sum(1) / self.bins[2].sum()).tolist()
        grad_norm, clipped = (self.sums[:2] / self.sums[2]).tolist()
        bins = enumerate((self.bins[:2] / self.bins[2]).T.tolist())  # nan where there was no example
        speed = self.batch_size * self.timed_steps / self.seconds if self.seconds else 0.0
        self.reset()
        per_bin = {
            f"train/snr_bin_{i}/{name}": value
            for i, values in bins
            for name, value in zip(("loss", "loss_unweighted"), values, strict=True)
            if value == value
        }
        return {
            "train/loss": loss,
            "train/loss_unweighted": unweighted,
            "train/grad_norm": grad_norm,
            "train/clipped": clipped,
            "speed/images_per_second": speed,
            **per_bin,
        }

    def state_dict(self) -> dict[str, Tensor]:
        return {"bins": self.bins, "sums": self.sums}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.bins, self.sums = state["bins"].clone(), state["sums"].clone()
