"""Try a run before paying for it: `python -m t2i.check [-m] OVERRIDES`, with the overrides of `t2i.train`.

Each job (with -m: each job of the sweep) goes through its whole life with two steps: train, validate, save, be
interrupted, resume, export, load what was exported, sample. Then its time, memory and disk for all steps are estimated.
"""

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from t2i.config import ConfigError
from t2i.config.checks import check, check_types


@dataclass(frozen=True)
class Estimate:
    """Of a whole run on this machine, from two steps of it."""

    hours: float
    memory_gb: float  # peak so far of this process, or of the GPU
    disk_gb: float


def live(cfg: DictConfig, folder: Path) -> Estimate:
    """Go through the life of a run in `folder`; what can't work raises what the run would have raised."""
    from t2i.experiment.run import run
    from t2i.plan import check_the_rest, make_plan
    from t2i.publishing.push import Publisher
    from t2i.runs.folder import Run
    from t2i.sampling.images import sample
    from t2i.sampling.pipelines import load_pipeline

    check(cfg, num_processes=1)
    make_plan(cfg)
    check_the_rest(cfg)
    Publisher(**cfg.hub).check()
    short = {"steps": 2, "log_every": 1, "validate_every": 2, "sample_every": 2, "save_every": 1, "stop_at": 1}
    short |= {"sweep": None, "tracker": {"_target_": "t2i.tracking.NoTracker"}}
    trial = OmegaConf.create(OmegaConf.to_container(cfg) | short)
    trial.hub.push = False  # two steps are nothing to publish
    if "num_warmup_steps" in trial.lr_scheduler:
        trial.lr_scheduler.num_warmup_steps = 0
    run(trial, make_plan(trial), folder, [])
    trial.stop_at = None
    run(trial, make_plan(trial), folder, [])
    pipeline = load_pipeline(folder)
    started = time.perf_counter()
    sample(pipeline, list(cfg.samples.prompts), cfg.samples.seed, cfg.samples.steps, cfg.samples.guidance_scale)
    sampling = time.perf_counter() - started
    lines = Run(folder, trial).metrics()
    step_seconds = cfg.batch_size / lines[-1]["speed/images_per_second"]
    checkpoint = _bytes(folder / "checkpoints" / "step-000002")
    times = {name: (cfg.steps // cfg[name] + 2 if cfg[name] else 0) for name in ("sample_every", "validate_every")}
    validation = lines[0]["speed/hours"] * 3600 if lines[0]["step"] == 0 else 0.0  # and the first samples
    seconds = cfg.steps * step_seconds + times["sample_every"] * sampling + times["validate_every"] * validation
    disk = (cfg.keep_checkpoints + 1 + bool(cfg.validate_every)) * checkpoint + _bytes(folder / "model")
    return Estimate(seconds / 3600, max(line["memory/peak_gb"] for line in lines), disk / 1e9)


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main(arguments: list[str] | None = None) -> None:
    from hydra.errors import HydraException
    from rich.console import Console
    from rich.table import Table

    from t2i.config.compose import CONF, asked, compose

    table, failures = Table("job", "result", "hours", "memory GB", "disk GB"), 0
    for column in table.columns[2:]:
        column.justify = "right"
    for job in asked("t2i.check", __doc__, "loss=minsnr optimizer.lr=1e-4", arguments):
        texts = [text for _, text in job]
        name = " ".join(text for override, text in job if override and override.is_sweep_override()) or "run"
        try:
            cfg = compose(texts)
            check_types(cfg, compose([text for text in texts if (CONF / text.partition("=")[0]).is_dir()]))
            with tempfile.TemporaryDirectory(prefix="t2i-check-") as folder:
                found = live(cfg, Path(folder) / "run")
            table.add_row(name, "[green]works", f"{found.hours:.2f}", f"{found.memory_gb:.1f}", f"{found.disk_gb:.2f}")
        except (ConfigError, HydraException, OSError, ArithmeticError, RuntimeError) as error:
            failures += 1
            table.add_row(name, f"[red]{' '.join(str(error).split())}", "", "", "")
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    sys.exit(2 if failures else 0)


if __name__ == "__main__":
    main()
