"""Micro-batches in order, prefetched by workers that may die."""

import logging
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, cast

import torch

from t2i.data.batches import Batch
from t2i.runs.text import one_line

log = logging.getLogger(__name__)
MAX_DEATHS = 10  # of data-loader workers, before the run ends


@dataclass
class MicroBatches(torch.utils.data.Sampler):
    """Positions of each micro-batch of this process, from optimizer step `first_step` on.

    The `batch_size` positions of a step are dealt out in blocks, so a step has the same examples for every
    micro-batch size and number of processes.
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
    """Training examples: workers read them, and the process of the training loop finishes the batch."""

    @property
    def fingerprint(self) -> str:
        """A hash of the data set, its preparation and the encoders."""
        ...

    def __getitems__(self, positions: list[int]) -> Any:
        """What a worker reads for the batch at these positions of the endless order."""
        ...

    def finish(self, read: Any) -> Batch:
        """The batch, from what a worker has read."""
        ...


def loader(examples: Readable, micro_batches: MicroBatches, num_workers: int) -> Iterator[Batch]:
    """The micro-batches in order, prefetched by `num_workers` processes (0: read in this one).

    When a worker dies, new ones continue where it stopped: a batch depends on its positions alone.
    """
    seen = deaths = 0
    while seen < len(micro_batches):
        batches = iter(
            torch.utils.data.DataLoader(
                cast(torch.utils.data.Dataset, examples),  # the loader calls nothing but `__getitems__`
                batch_sampler=islice(micro_batches, seen, None),
                num_workers=num_workers,
                collate_fn=_as_is,
                worker_init_fn=_ignore_interrupts,
                # An iterator draws a seed. At the start of a run it is the first draw of step 0; later ones must not
                # take from the step in which they are made, or dropout would be another after a resume.
                generator=None if micro_batches.first_step == seen == 0 else torch.Generator(),
            )
        )
        if num_workers and threading.current_thread() is threading.main_thread():
            # Torch's handler raises at whatever line the main thread executes; without it, the next batch raises.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            for batch in batches:
                seen += 1
                yield examples.finish(batch)
        except (RuntimeError, ConnectionError, EOFError) as error:
            deaths += 1
            if not _is_death(error) or deaths > MAX_DEATHS:
                raise
            log.warning("a data-loader worker died (%s); continuing with new workers", one_line(error))
        finally:
            del batches  # ends the workers at once; kept alive by an exception's traceback, they take 5 s


def _is_death(error: Exception) -> bool:
    """Whether it says that a worker ended; what a worker itself raised comes with its traceback, after "Caught"."""
    text = str(error)
    if isinstance(error, RuntimeError):
        return text.startswith("DataLoader worker (")
    return not text.startswith("Caught ")  # the worker ended while a batch was being handed over


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal, a warning of Slurm every one of a job; the main one ends workers."""
    for name in ("SIGINT", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _as_is(batch: Any) -> Any:
    return batch
