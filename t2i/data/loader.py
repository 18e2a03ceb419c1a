"""Micro-batches in order, made ahead of time by workers that may die."""

import logging
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch

from t2i.data.batches import Batch

log = logging.getLogger(__name__)
MAX_DEATHS = 10  # of data-loader workers, before the run ends


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
