"""How soon a run trains: from the start of its process to its first optimizer step, with a cold and with a warm cache.

    python benchmarks/start.py                 # the tiny model, as the default run has it
    python benchmarks/start.py --set sd15      # full Stable Diffusion 1.5, with random weights: tens of minutes

Measured in two places, which take turns: a command after another one, and the first and the second
job of a sweep, from when the job's process opens its console. The cache begins empty in each round. A step is taken
when its line is in metrics.jsonl, so the step itself is in the figure. The second run must not change the cache.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import speed

POLL = 0.01  # seconds
SHORT = "steps=1 tracker=none validate_every=0 sample_every=0 save_every=0 log_every=1"


class Encoded(Exception):
    """The second run has encoded something."""


def stamps(cache: Path) -> dict[Path, tuple[int, int]]:
    """What is in the cache: size and time of change of each file but the locks."""
    files = (file for file in cache.rglob("*") if file.is_file() and file.suffix != ".lock")
    return {file: (file.stat().st_size, file.stat().st_mtime_ns) for file in files}


def wait_for(file: Path, process: subprocess.Popen, least: int = 1) -> float:
    """The time at which the file has so many bytes."""
    ended = False
    while not (file.is_file() and file.stat().st_size >= least):
        if ended:
            raise subprocess.CalledProcessError(process.returncode, process.args)
        time.sleep(POLL)
        ended = process.poll() is not None  # and one more look at the file
    return time.perf_counter()


def commands(folder: Path, overrides: list[str]) -> tuple[float, float]:
    """Seconds of the first and of the second command to their first steps."""
    seconds, before = [], {}
    for name in ("first", "second"):
        begun = time.perf_counter()
        process = start(folder, [f"run={name}", *overrides])
        seconds.append(wait_for(folder / "multirun" / name / "metrics.jsonl", process) - begun)
        process.kill()  # what comes after the first step is not the question
        process.wait()
        before = before or stamps(folder / "cache")
    check_unchanged(folder / "cache", before)
    return seconds[0], seconds[1]


def sweep(folder: Path, overrides: list[str]) -> tuple[float, float]:
    """Seconds of the first and of the second job of a sweep to their first steps."""
    process = start(folder, ["-m", "sweep=start", "seed=0,1", *overrides])
    seconds, before = [], {}
    for seed in (0, 1):
        job = folder / "multirun" / "start" / f"seed-{seed}"
        begun = wait_for(job / "console.log", process, least=0)
        seconds.append(wait_for(job / "metrics.jsonl", process) - begun)
        before = before or stamps(folder / "cache")
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, process.args)
    check_unchanged(folder / "cache", before)
    return seconds[0], seconds[1]


def start(folder: Path, arguments: list[str]) -> subprocess.Popen:
    with (folder / "console.log").open("a") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "t2i.train", *arguments, f"cache_dir={folder}/cache"],
            cwd=folder,
            stdout=output,
            stderr=output,
        )


def check_unchanged(cache: Path, before: dict[Path, tuple[int, int]]) -> None:
    if changed := sorted(str(file) for file, stamp in stamps(cache).items() if before.get(file) != stamp):
        raise Encoded(f"the second run has written to the cache: {', '.join(changed)}")


PLACES = {"a command": commands, "a job of a sweep": sweep}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=list(speed.SETS), default="tiny")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="for model and images, to be kept; default: temporary")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="of t2i.train")
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as temporary:
        common = []  # the default run: its own model and its own images
        if options.set != "tiny":
            folder = (options.folder or Path(temporary)).absolute()
            folder.mkdir(parents=True, exist_ok=True)
            common = speed.prepare(speed.SETS[options.set], folder)
            common = [each for each in common if not each.startswith("cache_dir=")]
        found = {place: [] for place in PLACES}
        for _ in range(options.rounds):
            for place, seconds in PLACES.items():
                with tempfile.TemporaryDirectory() as folder:
                    found[place].append(seconds(Path(folder), [*common, *SHORT.split(), *options.overrides]))
    for place, pairs in found.items():
        first, second = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratios = [cold / warm for cold, warm in pairs]
        print(
            f"{place:17} first {first:6.2f} s · second {second:6.2f} s · {statistics.median(ratios):5.2f} × sooner "
            f"({min(ratios):.2f} to {max(ratios):.2f} in {len(pairs)} rounds); the second encodes nothing"
        )


if __name__ == "__main__":
    main()
