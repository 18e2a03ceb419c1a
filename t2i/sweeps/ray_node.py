"""What runs on a node of a Ray cluster."""

import multiprocessing
import signal
from typing import Any

from t2i.sweeps.process import PATIENCE, end, run_job, send

POLL = 0.2  # seconds; ray.cancel interrupts Python code, not a system call that waits


def run_on_node(settings: dict[str, Any]) -> int:
    """Run a job in a process of its own; returns its exit code, also after Ray has cancelled the task."""
    process = multiprocessing.get_context("spawn").Process(target=run_job, kwargs=settings)
    process.start()
    try:
        while process.is_alive():
            process.join(POLL)
    except KeyboardInterrupt:
        send(process, signal.SIGINT)
        end(process, PATIENCE)
    return process.exitcode or 0
