"""How a run that fails is noted in run.json, and what is said of failures whose remedy is a setting."""

import re
from collections.abc import Generator
from contextlib import contextmanager, suppress

from t2i.config import ConfigError
from t2i.config.out_of_memory import advice, lacking
from t2i.distributed.launch import peers
from t2i.distributed.peers import PeerFailed
from t2i.runs.folder import Run
from t2i.runs.text import one_line

# What torch.use_deterministic_algorithms makes an operation say. Some name themselves, and some are named by cuBLAS.
NOT_DETERMINISTIC = re.compile(r"(\S+) does not have a deterministic implementation")
COMPILERS = ("torch._inductor", "torch._dynamo", "triton")


@contextmanager
def failures_noted(run: Run) -> Generator[None]:
    """Note in run.json how the run ended if it did not finish; raise ConfigError where a setting helps."""
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
        known = None if isinstance(error, ConfigError) else remedied(error)
        kind = "out of memory" if known and lacking(error) else type(error).__name__
        with suppress(OSError):  # a full disk
            run.end("failed", error=f"{kind}: {error}")
        if known is None:
            raise
        raise ConfigError(known) from error


def remedied(error: BaseException) -> str | None:
    """The message for an error of a library that a setting avoids; None for others."""
    if kind := lacking(error):
        return advice(kind, error)
    text = str(error)
    if found := NOT_DETERMINISTIC.search(text):
        return (
            f"deterministic=true: {found[1]} has no implementation that gives the same bits each time on this device; "
            "another value of attention may avoid it (attention=math), else use deterministic=false"
        )
    if isinstance(error, NotImplementedError) and "memory_efficient_attention" in text:
        return (
            f"attention=xformers: this build of xformers has no operator for these inputs ({one_line(error)}); use "
            "attention=sdpa, or the xformers that was built for your torch and GPU"
        )
    if type(error).__module__.startswith(COMPILERS):
        return f"compile: the denoiser can't be compiled here ({one_line(error)[:300]}); use compile=false"
    return None
