"""Runs that are sent a signal at a chosen moment."""

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import httpx
import torch

from helpers.runs import compose
from t2i.cli import failing
from t2i.experiment.plan import make_plan
from t2i.experiment.run import run

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "shutil.rmtree", "os.chmod")


def train_and_die(folder, overrides, module, function, call, signum):
    """In a process of its own: a run that is sent the signal at this call of the function."""
    owner = __import__(module, fromlist=[function])
    original, calls = getattr(owner, function), 0

    def fatal(*arguments, **keywords):
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signum)
        return original(*arguments, **keywords)

    setattr(owner, function, fatal)
    torch.set_num_threads(1)
    cfg = compose(*overrides)
    run(cfg, make_plan(cfg), Path(folder), overrides)


PAUSED: list[bool] = []  # whether changes are not counted now


@contextmanager
def audited(module: Any, function: str) -> Iterator[None]:
    """Within, changes are counted while this function runs, and afterwards."""
    original = getattr(module, function)

    def counted(*arguments: Any, **keywords: Any) -> Any:
        PAUSED.clear()
        return original(*arguments, **keywords)

    PAUSED.append(True)
    setattr(module, function, counted)
    try:
        yield
    finally:
        setattr(module, function, original)
        PAUSED.clear()


def die_at(command: Callable[[], Any], folder: Path, moment: int | None, result: Queue) -> None:
    """In a process of its own: a command that is killed before it changes the file system below `folder` once more.

    moment: after how many changes and requests; None lets it end. `result` gets their number, or the error's text.
    """
    done = 0

    def count() -> None:
        nonlocal done
        if PAUSED:
            return
        done += 1
        if done - 1 == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, arguments: tuple) -> None:
        changes = event in CHANGES or (event == "open" and arguments[2] and arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if changes and any(str(argument).startswith(str(folder)) for argument in arguments[:2]):
            count()

    send = httpx.Client.send
    httpx.Client.send = lambda *arguments, **keywords: count() or send(*arguments, **keywords)
    torch.set_num_threads(1)
    sys.addaudithook(watch)
    try:
        command()
        result.put(done)
    except Exception as error:
        result.put(failing.explain(error) or "".join(traceback.format_exception(error)))


def start(command: Callable[[], Any], folder: Path, moment: int | None = None) -> tuple[Any, Queue]:
    context = multiprocessing.get_context("fork")
    result = context.Queue()
    process = context.Process(target=die_at, args=(command, folder, moment, result))
    process.start()
    return process, result


def finish(command: Callable[[], Any], folder: Path, moment: int | None = None) -> int | str | None:
    """What `die_at` says at the end; None if the command was killed."""
    process, result = start(command, folder, moment)
    process.join(300)
    return None if process.exitcode == -signal.SIGKILL else result.get(timeout=10)
