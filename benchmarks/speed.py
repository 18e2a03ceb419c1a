"""t2i against the loop that everybody uses, and against the bare step: seconds per step, ratios, and memory.

    python benchmarks/speed.py                                          # the tiny model: minutes (make bench)
    python benchmarks/speed.py --set sd15 --arms reference-fp32,t2i-fp32  # full Stable Diffusion 1.5: an hour
    python benchmarks/speed.py --set all --out speed.json precision=bf16  # overrides of t2i.train, for every arm

On the CPU and, where there is one, on the GPU; on a machine that does nothing else. Each arm is a process of its own,
so that the peak of memory is its own; they take turns, round by round, so that a machine that is slow for a while is
slow for all. Arms of the tiny model live side by side and wait for their turn; two of Stable Diffusion 1.5 would not
fit into 24 GB, so each is started anew in each round. A turn is some steps that are not timed, then some that are; a
ratio is of two turns of the same round. What is to be encoded is encoded by processes before, which do not count.

Arms (their settings are below): `reference` is reference.py; `t2i` is the real loop with the settings of the reference,
its encodings cached; `bare` is forward, backward, clipping and AdamW alone, and `t2i-all-on` the loop that is to cost
no more. The images have the size that is trained with, so that the reference need not shrink them: it has it easy.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import HERE, ArmFailed, Process

from t2i.hardware.gpus import visible_gpus


@dataclass(frozen=True)
class Arm:
    """kind: of arms.py. against: the arms that it is compared with, if they run too."""

    kind: str
    overrides: str  # of t2i.train, beside those of the set
    against: tuple[str, ...] = ()


@dataclass(frozen=True)
class Set:
    """Arms on one model. together: they live side by side; else each is started anew in each round.

    pipeline: of pipelines.py; None is the one that comes with t2i.
    """

    overrides: str
    arms: dict[str, Arm]
    pipeline: str | None
    resolution: int
    images: int  # to train on
    together: bool
    rounds: int
    steps: int


PLAIN = "loss=mse ema=none caption_dropout=0 log_every=1"  # what the reference does
SCRIPT = "attention=sdpa checkpoint_levels=null channels_last=false"  # how the reference computes
LORA = "adapter=lora adapter.rank=16 checkpoint_levels=3"
ALL_ON = "loss=minsnr ema=standard caption_dropout=0.1 log_every=1"
SETS = {
    "tiny": Set(
        overrides="model=tiny batch_size=16 micro_batch_size=16 optimizer.lr=1e-4",
        arms={
            "reference": Arm("reference", PLAIN),
            "reference-fp32": Arm("reference", f"{PLAIN} precision=fp32"),  # as the script comes
            "t2i": Arm("t2i", PLAIN, ("reference", "reference-fp32")),
            "t2i-all-on": Arm("t2i", ALL_ON, ("bare",)),
            "bare": Arm("bare", PLAIN),
            "channels-first": Arm("t2i", f"{PLAIN} precision=fp32 channels_last=false"),
            "channels-last": Arm("t2i", f"{PLAIN} precision=fp32 channels_last=true", ("channels-first",)),
        },
        pipeline=None,
        resolution=64,
        images=32,
        together=True,
        rounds=9,
        steps=8,
    ),
    "sd15": Set(
        overrides="model=sd15 batch_size=1 micro_batch_size=1 gradient_checkpointing=true optimizer.lr=1e-5",
        arms={
            "reference-fp32": Arm("reference", f"{PLAIN} precision=fp32"),
            "reference-bf16": Arm("reference", f"{PLAIN} precision=bf16"),
            "bare-fp32": Arm("bare", f"{PLAIN} precision=fp32"),
            "bare-bf16": Arm("bare", f"{PLAIN} precision=bf16"),
            "t2i-fp32": Arm("t2i", f"{PLAIN} precision=fp32 {SCRIPT}", ("reference-fp32",)),
            "t2i-bf16": Arm("t2i", f"{PLAIN} precision=bf16 precision.weights=fp32 {SCRIPT}", ("reference-bf16",)),
            "t2i-best": Arm("t2i", f"{PLAIN} precision=bf16 precision.weights=master", ("reference-bf16",)),
            "t2i-bf16_sr": Arm("t2i", f"{PLAIN} precision=bf16_sr {SCRIPT}", ("reference-bf16",)),
            "t2i-lora-fp32": Arm("t2i", f"{PLAIN} precision=fp32 {LORA}", ("reference-fp32",)),
            "t2i-lora-bf16": Arm("t2i", f"{PLAIN} precision=bf16 {LORA}", ("reference-bf16",)),
            "t2i-all-on-fp32": Arm("t2i", f"{ALL_ON} precision=fp32", ("bare-fp32",)),
            "t2i-all-on-bf16": Arm("t2i", f"{ALL_ON} precision=bf16", ("bare-bf16",)),
        },
        pipeline="sd15",
        resolution=512,
        images=4,
        together=False,
        rounds=3,
        steps=3,
    ),
}
EVERY = "dataset=folder tracker=none lr_scheduler=constant validate_every=0 sample_every=0 save_every=0"


@dataclass
class Outcome:
    """What was measured of an arm; round -> figures."""

    name: str
    arm: Arm
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)  # per step
    peak_gb: dict[int, float] = field(default_factory=dict)  # 10⁹ bytes
    problem: str = ""  # why there is nothing more

    def add(self, number: int, process: Process, answer: dict[str, float]) -> None:
        self.facts = process.facts
        self.seconds[number], self.peak_gb[number] = answer["seconds"], answer["peak_gb"]

    def summary(self) -> dict[str, Any]:
        about = {"name": self.name, "kind": self.arm.kind, "overrides": self.arm.overrides, "problem": self.problem}
        if not self.seconds:
            return about
        about |= {key: self.facts[key] for key in ("precision", "attention")}
        figures = {"seconds": list(self.seconds.values()), "peak_gb": max(self.peak_gb.values())}
        return about | figures | {"median_seconds": statistics.median(self.seconds.values())}


def comparisons(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Of each arm with each of its baselines: the ratios of the rounds in which both had their turn.

    `speed` is the arm's steps per second in those of the baseline; `time` is the inverse, of seconds per step.
    """
    by_name = {outcome.name: outcome for outcome in outcomes}
    found = []
    for outcome in outcomes:
        for baseline in (by_name[name] for name in outcome.arm.against if name in by_name):
            both = sorted(outcome.seconds.keys() & baseline.seconds.keys())
            speed = [baseline.seconds[number] / outcome.seconds[number] for number in both]
            if both:
                spans = {"speed": _span(speed), "time": _span([1 / ratio for ratio in speed])}
                found.append({"arm": outcome.name, "against": baseline.name, "rounds": len(both), **spans})
    return found


def _span(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure(
    chosen: Set, outcomes: Sequence[Outcome], common: Sequence[str], device: str, folder: Path, options
) -> None:
    """Fill in the outcomes, arm by arm and round by round; one that fails is left out from there on."""
    rounds, steps = options.rounds or chosen.rounds, options.steps or chosen.steps
    alive: dict[str, Process] = {}

    def start(outcome: Outcome, kind: str) -> Process:
        overrides = [*common, *outcome.arm.overrides.split(), *options.overrides]
        return Process(kind, overrides, device, folder / f"{outcome.name}.log")

    def turn(number: int, outcome: Outcome) -> None:
        process = alive.get(outcome.name) or start(outcome, outcome.arm.kind)
        alive[outcome.name] = process
        outcome.add(number, process, process.turn(options.warmup, steps))
        if not chosen.together or number == rounds - 1:
            alive.pop(outcome.name).close()
        _say(f"{device} · round {number + 1} of {rounds} · {outcome.name}: {outcome.seconds[number]:.3f} s per step")

    try:
        for number in range(-1, rounds):  # before the first they encode
            for outcome in (each for each in outcomes if not each.problem):
                try:
                    if number >= 0:
                        turn(number, outcome)
                    elif outcome.arm.kind != "reference":
                        start(outcome, "encode").close()
                except ArmFailed as failure:
                    alive.pop(outcome.name, None)
                    outcome.problem = str(failure)
                    _say(f"{device} · {outcome.name} fails: {failure}")
    finally:
        for process in alive.values():
            process.kill()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def show(report: dict[str, Any]) -> None:
    """Two tables: the arms, and how they compare."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(f"\n{_headline(report)}", highlight=False)
    arms = Table("arm", "s per step (median)", "peak memory, GB (10⁹ bytes)", "precision", "attention")
    for arm in report["arms"]:
        figures = ["", ""]
        if "median_seconds" in arm:
            figures = [f"{arm['median_seconds']:.3f}", f"{arm['peak_gb']:.2f}", arm["precision"], arm["attention"]]
        arms.add_row(arm["name"], *figures)
    console.print(arms)
    for arm in report["arms"]:
        if arm["problem"]:
            console.print(f"{arm['name']} fails: {arm['problem']}", highlight=False, markup=False)
    ratios = Table("arm", "against", "speed ×: median (min to max)", "time per step ×: median (min to max)", "rounds")
    for each in report["comparisons"]:
        spans = [
            f"{span['median']:.3f} ({span['min']:.3f} to {span['max']:.3f})" for span in (each["speed"], each["time"])
        ]
        ratios.add_row(each["arm"], each["against"], *spans, str(each["rounds"]))
    console.print(ratios)


def _headline(report: dict[str, Any]) -> str:
    machine = report["machine"]
    if not machine:
        return f"{report['set']} on {report['device']}: no arm could be measured"
    features = ", ".join(machine["features"]) or "no vector extensions"
    return (
        f"{report['set']} on {machine['device']} · {machine['cpu']}, {machine['cores']} cores ({features}), "
        f"{machine['threads']} threads · PyTorch {machine['torch']} · "
        f"{report['rounds']} rounds of {report['steps']} steps"
    )


def devices(asked: str) -> list[str]:
    """cpu, and cuda where there is a GPU that this process may use; or the one that is asked for."""
    there = ["cpu", "cuda"] if visible_gpus() else ["cpu"]
    if asked not in (*there, "all"):
        sys.exit(f"--device {asked}: there is no GPU here")
    return there if asked == "all" else [asked]


def prepare(chosen: Set, folder: Path) -> list[str]:
    """Write what the arms work on, by a process that is gone before they start; returns the overrides for it."""
    images = folder / f"images-{chosen.resolution}-{chosen.images}"
    sizes = [str(chosen.resolution), str(chosen.images)]
    command = [sys.executable, str(HERE / "pipelines.py"), "--images", str(images), *sizes]
    overrides = [*EVERY.split(), *chosen.overrides.split(), f"cache_dir={folder}/cache"]
    overrides += [f"dataset.path={images}", f"dataset.resolution={chosen.resolution}"]
    if chosen.pipeline:
        command += [f"--{chosen.pipeline}", str(folder / chosen.pipeline)]
        overrides += [f"model.path={folder / chosen.pipeline}"]
    subprocess.run(command, check=True)
    return overrides


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=[*SETS, "all"], default="tiny")
    parser.add_argument("--arms", help="only these, with commas between; default: all of the set")
    parser.add_argument("--rounds", type=int, help=_defaults("rounds"))
    parser.add_argument("--steps", type=int, help=f"timed in each turn; {_defaults('steps')}")
    parser.add_argument("--warmup", type=int, default=1, help="steps before, in each turn (default: %(default)s)")
    parser.add_argument(
        "--device", choices=["cpu", "cuda", "all"], default="all", help="all: the CPU, and a GPU if any"
    )
    parser.add_argument("--folder", type=Path, help="for model, images and encodings, to be kept; default: temporary")
    parser.add_argument("--out", type=Path, help="write all figures there, as JSON")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="of t2i.train, for every arm")
    return parser


def _defaults(name: str) -> str:
    return "default: " + ", ".join(f"{getattr(each, name)} for {key}" for key, each in SETS.items())


def main() -> None:
    options = parser().parse_intermixed_args()
    names = list(SETS) if options.set == "all" else [options.set]
    asked = options.arms.split(",") if options.arms else None
    known = [arm for name in names for arm in SETS[name].arms]
    if unknown := sorted(set(asked or ()) - set(known)):
        sys.exit(f"--arms: there is no {', '.join(unknown)}; choose from {', '.join(known)}")
    on = devices(options.device)
    reports = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            chosen = SETS[name]
            arms = {key: arm for key, arm in chosen.arms.items() if not asked or key in asked}
            common = prepare(chosen, folder) if arms else []
            for device in on if arms else []:
                outcomes = [Outcome(key, arm) for key, arm in arms.items()]
                measure(chosen, outcomes, common, device, Path(temporary), options)
                measured = [outcome for outcome in outcomes if outcome.facts]
                reports.append(
                    {
                        "set": name,
                        "device": device,
                        "machine": measured[0].facts["machine"] if measured else {},
                        "rounds": options.rounds or chosen.rounds,
                        "steps": options.steps or chosen.steps,
                        "overrides": options.overrides,
                        "arms": [outcome.summary() for outcome in outcomes],
                        "comparisons": comparisons(outcomes),
                    }
                )
                if options.out:
                    options.out.write_text(json.dumps(reports, indent=2, ensure_ascii=False) + "\n")
    for report in reports:
        show(report)
    sys.exit(any(arm["problem"] for report in reports for arm in report["arms"]))


if __name__ == "__main__":
    main()
