"""Try a run before paying for it: `t2i check [-m] OVERRIDES`, with the overrides of `t2i train`.

Each job (with -m, each job of the sweep) goes through a run of two steps: it trains, validates, saves, is interrupted,
resumes, exports, loads what it exported, and samples. From that, t2i estimates the time, memory and disk space of the
full run. With --memory it reads no weights and trains nothing: it says what the run needs in memory, from the settings
of its model. The exit code is 2 if any job fails.
"""

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.errors import HydraException
from omegaconf import DictConfig

from t2i.cli import memory
from t2i.cli.arguments import Job, overrides_parser, parse_jobs
from t2i.cli.failing import explain, run
from t2i.config import ConfigError
from t2i.config.checks import check, check_types

if TYPE_CHECKING:
    from t2i.runs.folder import Run


@dataclass(frozen=True)
class Estimate:
    """What the full run costs on this machine."""

    hours: float
    memory_gb: float  # peak of this process so far, or of the GPU
    disk_gb: float


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from t2i.runs.text import printable

    table, failures, costs = Table("job", "result", "hours", "memory GB", "disk GB"), 0, []
    for column in table.columns[2:]:
        column.justify = "right"
    parser = overrides_parser("check", __doc__, "loss=minsnr optimizer.lr=1e-4")
    parser.add_argument("--memory", action="store_true", help="say what is needed in memory instead, without weights")
    options, jobs = parse_jobs(parser, arguments)
    if options.memory:
        return memory.tell(jobs)
    for job in jobs:
        name = escape(printable(job.name))
        try:
            costs.append(cost := try_job(job))
            numbers = f"{cost.hours:.2f}", f"{cost.memory_gb:.1f}", f"{cost.disk_gb:.2f}"
            table.add_row(name, "[green]works", *numbers)
        except (ConfigError, HydraException, OSError, ArithmeticError, RuntimeError) as error:
            failures += 1
            message = explain(error, job.overrides) or f"{type(error).__name__}: {error}"
            table.add_row(name, f"[red]{escape(printable(' '.join(message.split())))}", "", "", "")
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(table)
    console.print(in_words(costs, failures), markup=False)
    return 2 if failures else 0


def in_words(costs: list[Estimate], failures: int) -> str:
    """What the table says: whether the jobs can begin, and what those that work cost one after the other."""
    refused = f"{failures} of {failures + len(costs)} jobs would fail; the reasons are above." if failures else ""
    if not costs:
        return refused
    hours, memory = sum(cost.hours for cost in costs), max(cost.memory_gb for cost in costs)
    works = "The job works" if len(costs) == 1 else f"{len(costs)} jobs work, one after the other"
    time = f"{60 * hours:.0f} minutes" if hours < 2 else f"{hours:.1f} hours"
    where = "on this machine, if nothing else runs here, and the time to read and encode the data once"
    disk = sum(cost.disk_gb for cost in costs)
    spoken = f"{works}: about {time} {where}; {memory:.1f} GB of memory at the peak; {disk:.2f} GB on the disk."
    return f"{spoken} {refused or 'To begin, type the same command with train in the place of check.'}"


def try_job(job: Job) -> Estimate:
    from t2i.config.compose import compose, compose_defaults

    cfg = compose(job.overrides)
    check_types(cfg, compose_defaults(job.overrides))
    with tempfile.TemporaryDirectory(prefix="t2i-check-") as folder:
        return try_out(cfg, Path(folder) / "run")


def try_out(cfg: DictConfig, folder: Path) -> Estimate:
    """Take a run of two steps in `folder` through all that happens to a run; raises what the full run would raise."""
    from t2i.experiment.plan import check_the_rest, make_plan
    from t2i.experiment.run import run
    from t2i.publishing.push import Publisher
    from t2i.runs.folder import Run
    from t2i.runs.fork_rules import open_parent
    from t2i.sampling.images import sample
    from t2i.sampling.pipelines import load_pipeline

    check(cfg, num_processes=1)
    open_parent(cfg, folder)
    make_plan(cfg)
    check_the_rest(cfg)
    Publisher(**cfg.hub).check()
    short = shortened(cfg)
    for stop_at in (1, None):
        short.stop_at = stop_at
        run(short, make_plan(short), folder, [])
    pipeline = load_pipeline(folder)
    started = time.perf_counter()
    sample(pipeline, list(cfg.samples.prompts), cfg.samples.seed, cfg.samples.steps, cfg.samples.guidance_scale)
    return estimate(cfg, Run(folder, short), sampling=time.perf_counter() - started)


def shortened(cfg: DictConfig) -> DictConfig:
    """The same run with two steps, no tracker, and nothing to publish."""
    short = cfg.copy()
    two_steps = {"steps": 2, "log_every": 1, "validate_every": 2, "sample_every": 2, "save_every": 1}
    for key, value in (two_steps | {"sweep": None, "tracker": {"_target_": "t2i.tracking.NoTracker"}}).items():
        short[key] = value
    if short.evaluate_every:
        short.evaluate_every, short.evaluation["items"] = 2, 4
    short.hub.push = False
    if short["from"].only is None:  # the state of a later step has no place in a run of two
        short["from"].run = None
    if "num_warmup_steps" in short.lr_scheduler:
        short.lr_scheduler.num_warmup_steps = 0
    return short


def estimate(cfg: DictConfig, short: "Run", sampling: float) -> Estimate:
    """The cost of the full run. short: the run of two steps; sampling: seconds for one set of samples."""
    from t2i.runs.records import SNAPSHOTS

    lines = short.metrics()
    step = cfg.batch_size / lines[-1]["speed/images_per_second"]
    before = lines[0]["speed/hours"] * 3600 if lines[0]["step"] == 0 else 0.0  # the first validation and samples
    times = {name: (cfg.steps // cfg[name] + 2 if cfg[name] else 0) for name in ("sample_every", "validate_every")}
    seconds = cfg.steps * step + times["sample_every"] * sampling + times["validate_every"] * before
    if cfg.evaluate_every:
        steps = cfg.evaluation.steps / cfg.samples.steps / len(cfg.samples.prompts)
        images = cfg.evaluation["items"] * len(cfg.evaluation.seeds)
        seconds += (cfg.steps // cfg.evaluate_every + 1) * images * steps * sampling
    checkpoint = _bytes(short.checkpoints / "step-000002")
    disk = (kept(cfg) + 1 + bool(cfg.validate_every)) * checkpoint + _bytes(short.folder / "model")
    disk += _bytes(short.folder / SNAPSHOTS) / 2 * min(cfg.ema.get("snapshots", 0), cfg.steps)  # two in two steps
    return Estimate(seconds / 3600, max(line["memory/peak_gb"] for line in lines), disk / 1e9)


def kept(cfg: DictConfig) -> int:
    """How many checkpoints the run keeps besides the best and the one that is being written."""
    saved = cfg.steps // cfg.save_every + 1 if cfg.save_every else 1
    return (saved if cfg.keep_checkpoints == "all" else cfg.keep_checkpoints) + len(cfg.keep_at)


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    run(main)
