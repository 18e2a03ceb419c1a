"""The examples that training sees, and every random choice about them."""

import logging
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from t2i.draws import generators
from t2i.encoding import Encoded
from t2i.orders import BucketOrder, Order
from t2i.timesteps import Distribution

log = logging.getLogger(__name__)
MAX_DEATHS = 10  # of data-loader workers, before the run ends


@dataclass
class Batch:
    """One micro-batch with all its random choices made. B: examples; latents are [B, C, h, w]."""

    x0: Tensor
    noise: Tensor  # what the target is made of
    input_noise: Tensor  # what the input is made of: the same, unless input_perturbation is on
    t: Tensor  # [B], integers
    text: dict[str, Tensor]  # what the model's `embed` returns for the B captions, and the views' `time_ids`, [B, 6]
    items: Tensor  # [B]: which pictures these are; of a stream [B, 2]: shard, and place in it

    def to(self, device: torch.device) -> "Batch":
        def move(value):
            return {k: v.to(device) for k, v in value.items()} if isinstance(value, dict) else value.to(device)

        return Batch(**{field.name: move(getattr(self, field.name)) for field in fields(self)})


@dataclass(frozen=True)
class Draws:
    """What is drawn for each example, by its position in the endless order."""

    num_timesteps: int
    timesteps: Distribution
    caption_dropout: float
    noise_offset: float
    input_perturbation: float
    seed: int

    def draw(self, positions: list[int], stream: str, kind: str = "random", **size) -> np.ndarray:
        """One draw for each position, [B, ...]; kind is a method of numpy's generator."""
        return np.stack([getattr(random, kind)(**size) for random in generators(self.seed, stream, positions)])

    def dropped(self, positions: list[int]) -> np.ndarray:
        """Whose captions are dropped, [B]."""
        return self.draw(positions, "caption") < self.caption_dropout

    def batch(
        self, positions: list[int], items: list, mean: np.ndarray, std: np.ndarray, text: dict[str, Tensor]
    ) -> Batch:
        """The batch at some positions, of latents with the given mean and standard deviation, [B, C, h, w]."""
        u = self.timesteps.spread(self.draw(positions, "timestep"), positions)
        normal = partial(self.draw, positions, kind="standard_normal", size=mean.shape[1:], dtype=np.float32)
        noise = normal("noise")
        if self.noise_offset:  # one number per channel (Guttenberg 2023, "Diffusion with offset noise")
            noise += self.noise_offset * normal("noise_offset", size=(mean.shape[1], 1, 1))
        input_noise = noise
        if self.input_perturbation:
            input_noise = noise + self.input_perturbation * normal("input_perturbation")
        return Batch(
            x0=torch.from_numpy(mean + std * normal("posterior")),
            noise=torch.from_numpy(noise),
            input_noise=torch.from_numpy(input_noise),
            t=torch.from_numpy(self.timesteps.quantile(u, self.num_timesteps)),
            text=text,
            items=torch.tensor(items),
        )


@dataclass
class Examples(torch.utils.data.Dataset):
    """Training examples by their position in the endless order; the batch at some positions is always the same."""

    encoded: Encoded
    order: Order | BucketOrder
    draws: Draws

    @property
    def fingerprint(self) -> str:
        return self.encoded.fingerprint

    def __getitems__(self, positions: list[int]) -> Batch:
        items = [self.order[position] for position in positions]
        views = self.draws.draw(positions, "image")
        mean, std = self.encoded.moments(items, views)
        kept = [None if drop else item for item, drop in zip(items, self.draws.dropped(positions), strict=True)]
        text = self.encoded.text(kept, self.draws.draw(positions, "caption_choice"))
        text["time_ids"] = self.encoded.framing(items, views)
        return self.draws.batch(positions, items, mean, std, text)

    def finish(self, batch: Batch) -> Batch:
        """What is left to do in the process of the loop: nothing."""
        return batch


@dataclass
class MicroBatches(torch.utils.data.Sampler):
    """Positions of each micro-batch of this process, from optimizer step `first_step` on.

    A step's `batch_size` positions are dealt in blocks: its examples are the same however they are split.
    """

    batch_size: int
    micro_batch_size: int
    first_step: int
    last_step: int
    rank: int = 0
    num_processes: int = 1

    @property
    def accumulation(self) -> int:
        """Micro-batches per process and optimizer step."""
        return self.batch_size // (self.micro_batch_size * self.num_processes)

    def __len__(self) -> int:
        return max(0, self.last_step - self.first_step) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first_step, self.last_step):
            for micro in range(self.accumulation):
                block = micro * self.num_processes + self.rank
                start = step * self.batch_size + block * self.micro_batch_size
                yield list(range(start, start + self.micro_batch_size))


class Readable(Protocol):
    """What batches come from: workers read, and the process of the loop finishes what they have read."""

    def __getitems__(self, positions: list[int]) -> Any: ...

    def finish(self, read: Any) -> Batch: ...


def loader(examples: Readable, micro_batches: MicroBatches, num_workers: int) -> Iterator[Batch]:
    """The micro-batches in order, made ahead of time by `num_workers` processes (0: in this one).

    When a worker dies, others take its place: a batch depends on its positions alone.
    """
    seen = deaths = 0
    while seen < len(micro_batches):
        batches = iter(
            torch.utils.data.DataLoader(
                examples,
                batch_sampler=islice(micro_batches, seen, None),
                num_workers=num_workers,
                collate_fn=_as_is,
                worker_init_fn=_ignore_interrupts,
            )
        )
        if num_workers and threading.current_thread() is threading.main_thread():
            # Torch's handler would raise wherever training happens to be; without it, asking for a batch raises.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            for batch in batches:
                seen += 1
                yield examples.finish(batch)
        except RuntimeError as error:
            deaths += 1
            if "DataLoader worker" not in str(error) or deaths > MAX_DEATHS:
                raise
            log.warning("a data-loader worker died (%s); new ones go on", str(error).splitlines()[0])
        finally:
            del batches  # now, which ends the workers at once; among the garbage of an exception they take 5 s


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the main one decides when the workers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_is(batch: Any) -> Any:
    return batch
