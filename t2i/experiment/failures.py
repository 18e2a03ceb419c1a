"""How a run ends that does not finish: what run.json says of it, and what helps."""

from collections.abc import Generator
from contextlib import contextmanager, suppress

import torch

from t2i.config import ConfigError
from t2i.distributed.launch import peers
from t2i.distributed.peers import PeerFailed
from t2i.runs.folder import Run


@contextmanager
def failures_noted(run: Run) -> Generator[None]:
    """Note in run.json how the run ended if it did not finish; say what helps where memory ran out."""
    try:
        yield
    except KeyboardInterrupt:
        run.end("interrupted")
        raise
    except PeerFailed:
        if peers().writes:  # for process 0, if that is the one that died
            with suppress(OSError):
                peers().note(str(peers().failure))
        raise
    except BaseException as error:
        out_of_memory = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)  # GPU, CPU
        with suppress(OSError):  # a full disk
            run.end("failed", error=f"{'out of memory' if out_of_memory else type(error).__name__}: {error}")
        if not out_of_memory:
            raise
        raise ConfigError(
            f"out of memory ({str(error).splitlines()[0]}); what helps: a smaller micro_batch_size (the result is the "
            "same), gradient_checkpointing=true, precision=bf16, or bf16_sr for a new run"
        ) from error
