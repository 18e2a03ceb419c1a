"""What a sweep costs beside training: `python benchmarks/sweep.py`, on a machine that does nothing else.

Jobs of no steps, in a sweep of one and of five: the difference is what a job costs. A sweep with nothing left to do
shows how long the sweep itself takes to compose and start.
"""

import statistics
import subprocess
import sys
import tempfile
import time

REPEATS = 3
SETTINGS = ["experiment=smoke", "steps=0", "validate_every=0", "sample_every=0", "threads=1", "tracker=wandb"]


def sweep(folder: str, seeds: str) -> float:
    """Seconds of a sweep over these seeds in a folder."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "t2i.train", "-m", "sweep=cost", f"seed={seeds}", *SETTINGS]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    figures = {"a job of no steps": [], "the sweep itself, nothing left to do": []}
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as five:
            figures["a job of no steps"].append((sweep(five, "0,1,2,3,4") - sweep(one, "range(0,1)")) / 4)
            figures["the sweep itself, nothing left to do"].append(sweep(five, "0,1,2,3,4"))
    for name, seconds in figures.items():
        print(f"{name:40} {statistics.median(seconds):5.2f} s ({min(seconds):.2f} to {max(seconds):.2f})")


if __name__ == "__main__":
    main()
