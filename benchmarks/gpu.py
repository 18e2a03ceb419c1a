"""Everything that is to be known of a GPU, in one command of at most 8 minutes: `make test-gpu`.

    python benchmarks/gpu.py --out gpu.json        # the tests marked gpu, then seconds per step, memory, busy share
    python benchmarks/gpu.py --table gpu.json      # the table of docs/gpu-measured.md from these figures
    python benchmarks/gpu.py --device cpu --set smoke   # a rehearsal, where there is no GPU

After the tests come the sets, one after the other, each arm in a process of its own (arms.py). What the time does not
suffice for is named and left out; --minutes gives more. The random weights of the larger pipelines go to --folder:
Stable Diffusion 1.5, 2 GB, Stable Diffusion XL, 6 GB, PixArt-Sigma, 2 GB. `busy` is the share of some steps in which
the GPU computed, by PyTorch's profiler.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

from gpu_table import table
from gpu_tests import run_tests
from processes import HERE, ArmFailed, Process
from speed import EVERY, PLAIN, Arm, Outcome, comparisons

from t2i.hardware.gpus import visible_gpus

TESTS_SHARE = 0.45  # of the time, at most; what the sets work on is written meanwhile
LORA = "adapter=lora adapter.rank=16"
ONCE = "batch_size={0} micro_batch_size={0}"
BARE_AND_T2I = {"bare": Arm("bare", PLAIN), "t2i": Arm("t2i", PLAIN, ("bare",))}
SETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "overrides": f"model=tiny {ONCE.format(2)}",
        "resolution": 64,
        "arms": {
            "reference": Arm("reference", PLAIN),
            "bare": Arm("bare", PLAIN),
            "t2i": Arm("t2i", PLAIN, ("reference", "bare")),
        },
        "steps": 2,
    },
    "tiny": {
        "overrides": f"model=tiny {ONCE.format(16)} optimizer.lr=1e-4",
        "resolution": 64,
        "arms": {
            "reference": Arm("reference", PLAIN),
            "bare": Arm("bare", PLAIN),
            "t2i": Arm("t2i", PLAIN, ("reference", "bare")),
        },
        "steps": 50,
    },
    "sd15": {
        "overrides": f"model=sd15 {ONCE.format(4)} gradient_checkpointing=false optimizer.lr=1e-5",
        "resolution": 512,
        "pipeline": "sd15",
        "arms": {
            "reference-bf16": Arm("reference", f"{PLAIN} precision=bf16"),
            "bare-bf16": Arm("bare", f"{PLAIN} precision=bf16 attention=sdpa"),
            "t2i-bf16": Arm("t2i", f"{PLAIN} precision=bf16", ("reference-bf16", "bare-bf16")),
            "t2i-bf16_sr": Arm("t2i", f"{PLAIN} precision=bf16_sr", ("reference-bf16",)),
        },
        "steps": 8,
    },
    "sdxl-lora": {
        "overrides": f"model=sdxl {ONCE.format(1)} {LORA} precision=bf16 gradient_checkpointing=true",
        "resolution": 1024,
        "pipeline": "sdxl",
        "arms": BARE_AND_T2I,
        "steps": 5,
    },
    "pixart": {
        "overrides": f"model=pixart {ONCE.format(4)} precision=bf16_sr",
        "resolution": 512,
        "pipeline": "pixart",
        "arms": BARE_AND_T2I,
        "steps": 5,
    },
}
ROUNDS, WARMUP, WATCHED = 3, 3, 3
IMAGES = 16


class Clock:
    """The time that is left."""

    def __init__(self, minutes: float):
        self.began, self.until = time.monotonic(), time.monotonic() + 60 * minutes

    @property
    def left(self) -> float:
        """In seconds."""
        return self.until - time.monotonic()


def measure(
    name: str, common: Sequence[str] | None, device: str, folder: Path, clock: Clock, extra: Sequence[str]
) -> dict[str, Any]:
    """All arms of a set, one after the other. common: their overrides; None: what they work on could not be made."""
    chosen = SETS[name]
    outcomes = [Outcome(key, arm) for key, arm in chosen["arms"].items()]
    busy: dict[str, float | None] = {}
    if common is None:
        for outcome in outcomes:
            outcome.problem = "its images or its pipeline could not be written; the output says why"
    for outcome in outcomes if common is not None else ():
        try:
            overrides = [*common, *outcome.arm.overrides.split(), *extra]
            busy[outcome.name] = _time(outcome, overrides, device, folder, chosen["steps"], clock)
        except ArmFailed as failure:
            outcome.problem = str(failure) if clock.left > 0 else "no time was left for it"
            _say(f"{name} · {outcome.name} is not measured: {outcome.problem}")
    measured = [outcome for outcome in outcomes if outcome.facts]
    return {
        "set": name,
        "overrides": chosen["overrides"],
        "resolution": chosen["resolution"],
        "steps": chosen["steps"],
        "machine": measured[0].facts["machine"] if measured else {},
        "arms": [outcome.summary() | {"busy": busy.get(outcome.name)} for outcome in outcomes],
        "comparisons": comparisons(outcomes),
    }


def _time(
    outcome: Outcome, overrides: Sequence[str], device: str, folder: Path, steps: int, clock: Clock
) -> float | None:
    """Start the arm, and let it have its turns; returns the share of time in which the GPU is busy."""
    busy = None
    with _Deadline(clock) as deadline:
        console = folder / f"{outcome.name}.log"
        process = Process(outcome.arm.kind, overrides, device, console, started=deadline.processes.append)
        for number in range(ROUNDS):
            last = number == ROUNDS - 1
            answer = process.turn(WARMUP if number == 0 else 1, steps, WATCHED if last else 0)
            outcome.add(number, process, answer)
            busy = answer.get("busy")
        process.close()
    _say(f"{outcome.name}: {min(outcome.seconds.values()):.4f} s per step")
    return busy


class _Deadline:
    """Within, processes that are watched are killed when the time is up."""

    def __init__(self, clock: Clock):
        self.processes = list[subprocess.Popen]()
        self.timer = threading.Timer(max(0.1, clock.left), self._end)

    def _end(self) -> None:
        for process in self.processes:
            process.kill()

    def __enter__(self) -> "_Deadline":
        self.timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.timer.cancel()
        self._end()


def prepare(name: str, folder: Path, clock: Clock) -> list[str] | None:
    """Write what a set works on; returns the overrides for it, None if it could not be written in time."""
    chosen = SETS[name]
    resolution, pipeline = chosen["resolution"], chosen.get("pipeline")
    images = folder / f"images-{resolution}"
    commands = [["pipelines.py", "--images", str(images), str(resolution), str(IMAGES)]]
    overrides = [*EVERY.split(), *chosen["overrides"].split(), f"cache_dir={folder}/cache"]
    overrides += [f"dataset.path={images}", f"dataset.resolution={resolution}"]
    if pipeline:
        commands.append(["random_pipelines.py", pipeline, str(folder / pipeline)])
        overrides.append(f"model.path={folder / pipeline}")
    try:
        for script, *arguments in commands:
            program = [sys.executable, str(HERE / script), *arguments]
            subprocess.run(program, check=True, timeout=max(1.0, clock.left))
    except (subprocess.SubprocessError, OSError) as error:
        _say(f"{name}: {error}")
        return None
    return overrides


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a rehearsal")
    parser.add_argument("--set", choices=SETS, nargs="+", help="default: all but smoke")
    parser.add_argument("--minutes", type=float, default=8, help="for all of it (default: %(default)s)")
    parser.add_argument("--no-tests", action="store_true", help="the sets only")
    parser.add_argument(
        "--folder", type=Path, help="for pipelines, images and encodings, to be kept; default: temporary"
    )
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="default: %(default)s")
    parser.add_argument(
        "--table", type=Path, metavar="JSON", help="print the table of figures that were written before"
    )
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="of t2i train, for every arm")
    return parser


def main() -> None:
    options = parser().parse_intermixed_args()
    if options.table:
        print(table(json.loads(options.table.read_text())))
        return
    if options.device == "cuda" and not visible_gpus():
        sys.exit("there is no GPU here; --device cpu --set smoke rehearses without one")
    clock = Clock(options.minutes)
    names = options.set or [name for name in SETS if name != "smoke"]
    command = f"python benchmarks/gpu.py {' '.join(sys.argv[1:])}".strip()
    report: dict[str, Any] = {"command": command, "date": date.today().isoformat(), "tests": None, "sets": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(1) as meanwhile:
            prepared = {name: meanwhile.submit(prepare, name, folder, clock) for name in names}
            if not options.no_tests:
                report["tests"] = run_tests(options.device, TESTS_SHARE * clock.left, Path(temporary))
        for name in names:
            common = prepared[name].result()
            report["sets"].append(measure(name, common, options.device, folder, clock, options.overrides))
            report["minutes"] = (time.monotonic() - clock.began) / 60
            options.out.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    print(table(report))
    tests = report["tests"] or {"failed": {}, "problem": ""}
    bad = tests["failed"] or tests["problem"] or any(arm["problem"] for each in report["sets"] for arm in each["arms"])
    sys.exit(bool(bad))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
