"""What a sweep of 1,000 jobs asks of the launcher and of `t2i compare`: `python benchmarks/sweep_of_1000.py`.

The jobs are stand-ins. Each is a process that the launcher starts as it starts any other, but instead of training it
writes what a run of 2,000 steps leaves behind: 200 lines of metrics, 10 validations of 64 images at 16 noise levels,
samples. Everything else is real: the composition of each job's settings, its folder, lock and run.json, the table.

The settings are 10 values of snr_gamma × 10 learning rates, each with 10 seeds; with --settings 1000 they are 1,000
settings with a seed each.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

STEPS, VALIDATE_EVERY, LOG_EVERY, ITEMS, LEVELS = 2000, 200, 10, 64, 16
FIXED = f"steps={STEPS} validate_every={VALIDATE_EVERY} log_every={LOG_EVERY} tracker=none loss=minsnr".split()
BASE = "T2I_STAND_IN"  # environment variable: the file with the configuration that the jobs have in common


def varied(jobs: int, settings: int) -> list[str]:
    """The overrides that make so many jobs of so many settings."""
    rates = min(settings, 10) if settings < 1000 else 100
    gammas, seeds = settings // rates, jobs // settings
    assert gammas * rates * seeds == jobs, "jobs and settings must be multiples of ten"
    listed = {
        "loss.snr_gamma": range(1, gammas + 1),
        "optimizer.lr": [f"{1e-5 * 1.05**index:.6g}" for index in range(rates)],
        "seed": range(seeds),
    }
    return [f"{key}={','.join(map(str, values))}" for key, values in listed.items()]


def stand_in() -> None:
    """In a job's process, with the job's arguments in sys.argv: leave behind what a run does."""
    typed = dict(argument.split("=", 1) for argument in sys.argv[1:] if "=" in argument)
    folder = Path(typed.pop("hydra.run.dir").strip("'"))
    config = json.loads(Path(os.environ[BASE]).read_text())
    values = {key: json.loads(typed[key]) for key in ("loss.snr_gamma", "optimizer.lr", "seed") if key in typed}
    for key, value in values.items():
        *path, name = key.split(".")
        table = config
        for part in path:
            table = table[part]
        table[name] = float(value) if isinstance(table[name], float) else value
    write_run(folder, config, [f"{key}={value}" for key, value in typed.items() if "hydra" not in key])


def write_run(folder: Path, config: dict[str, Any], overrides: list[str]) -> None:
    """The folder of a finished run, whose errors depend on its settings and a little on its seed."""
    import numpy as np
    from PIL import Image

    from t2i.evaluation.metrics import all_metrics
    from t2i.runs.config_file import write_config
    from t2i.runs.errors_file import write_errors
    from t2i.runs.files import LOCK, atomic_write, numbered_file

    gamma, rate, seed = config["loss"]["snr_gamma"], config["optimizer"]["lr"], config["seed"]
    rng = np.random.default_rng([int(gamma * 1000), int(rate * 1e9), seed])
    quality = 1 + 0.1 * np.log(gamma / 5) ** 2 + 0.1 * np.log(rate / 1.5e-5) ** 2 + 0.01 * rng.standard_normal()
    images = np.random.default_rng(0).lognormal(0, 0.3, (ITEMS, LEVELS)) * np.linspace(0.9, 0.05, LEVELS)
    log_snr, lines = np.linspace(-5, 5, LEVELS), []
    write_config(folder, config)
    for step in range(0, STEPS + 1, LOG_EVERY):
        line = {"step": step, "train/loss": quality * (0.2 + np.exp(-step / 500)), "train/grad_norm": rng.random()}
        line |= {"train/lr": rate, "speed/images_per_second": 10.0, "speed/hours": step / 3600, "memory/peak_gb": 8.0}
        if step % VALIDATE_EVERY == 0:
            errors = images * quality * (0.5 + np.exp(-step / 500)) * rng.lognormal(0, 0.02, images.shape)
            by_weights = {"": errors, "ema/": errors * 0.98}
            write_errors(numbered_file(folder / "validation", step, "parquet"), "log_snr", log_snr, by_weights)
            line |= {
                metric.name: metric.of(by_weights) for prefix in by_weights for metric in all_metrics(prefix, LEVELS)
            }
        lines.append({key: float(value) if key != "step" else value for key, value in line.items()})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "samples").mkdir(exist_ok=True)
    columns = len(config["samples"]["prompts"])
    pixels = np.random.default_rng(1).integers(0, 255, (8, 8 * columns, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((64 * columns, 64)).save(numbered_file(folder / "samples", STEPS, "png"))
    (folder / LOCK).touch()
    battery = {"hash": "0" * 16, "items": ITEMS, "log_snr": list(map(float, log_snr)), "seed": 0}
    info = {"state": "finished", "config_hash": "0", "process": os.urandom(8).hex(), "battery": battery}
    info |= {"started": "2026-01-01T00:00:00+0000", "overrides": overrides, "choices": {}, "final": lines[-1]}
    atomic_write(folder / "run.json", json.dumps(info))


def launch(arguments: list[str]) -> None:
    """In a process of its own: run the sweep with stand-ins, and say on the last line what this process needed."""
    import sweep_of_1000  # by that name the jobs' processes find the stand-in

    import t2i.train
    from t2i.hardware.host_memory import peak_memory

    t2i.train.main, command = sweep_of_1000.stand_in, t2i.train.main
    sys.argv = ["t2i train", "-m", *arguments]
    begun, code = time.perf_counter(), 0
    try:
        command()
    except SystemExit as ended:
        code = int(ended.code or 0)
    used = resource.getrusage(resource.RUSAGE_SELF)
    facts = {
        "code": code,
        "seconds": time.perf_counter() - begun,
        "cpu": used.ru_utime + used.ru_stime,
        "peak_mb": peak_memory() / 1e6,
    }
    print(json.dumps(facts), flush=True)


def run_sweep(folder: Path, overrides: Iterable[str], n_jobs: int = 2) -> dict[str, float]:
    """Run a sweep of stand-ins in a folder; returns what its launcher needed: seconds, cpu (seconds), peak_mb."""
    arguments = [*overrides, *FIXED, "sweep=big", f"hydra.launcher.n_jobs={n_jobs}", "cache_dir=cache"]
    base = folder / "base.json"
    if not base.exists():
        fixed = [override for override in arguments if "," not in override and not override.startswith("hydra")]
        base.write_text(json.dumps(configuration(fixed)))
    here = Path(__file__).resolve().parent
    paths = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    program = "import sys, sweep_of_1000; sweep_of_1000.launch(sys.argv[1:])"
    with (folder / "sweep.log").open("a") as log:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": paths, BASE: str(base)},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        log.write(done.stdout)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, "sweep", (folder / "sweep.log").read_text()[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def configuration(overrides: list[str]) -> dict[str, Any]:
    """The resolved configuration of these overrides."""
    from t2i.config.compose import compose
    from t2i.config.instantiate import resolve

    return resolve(compose(overrides))


def run_compare(folder: Path) -> dict[str, float]:
    """`t2i compare` of the sweep: seconds, cpu (seconds), peak_mb, page_mb."""
    begun = time.perf_counter()
    program = "import sys, time, t2i.compare as c; c.main(sys.argv[1:]); "
    program += "from t2i.hardware.host_memory import peak_memory; print(peak_memory(), time.process_time())"
    done = subprocess.run(
        [sys.executable, "-c", program, "multirun/big"], cwd=folder, check=True, stdout=subprocess.PIPE, text=True
    )
    page = folder / "multirun" / "big" / "comparison" / "comparison.html"
    peak, cpu = done.stdout.splitlines()[-1].split()
    return {
        "seconds": time.perf_counter() - begun,
        "cpu": float(cpu),
        "peak_mb": int(peak) / 1e6,
        "page_mb": page.stat().st_size / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--settings", type=int, default=100, help="of which the jobs are repetitions with other seeds")
    parser.add_argument("--folder", type=Path, help="where the runs go, and stay (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        overrides = varied(options.jobs, options.settings)
        for name in ("the sweep", "the same command again"):
            used = run_sweep(folder, overrides)
            per_job = {key: used[key] / options.jobs * 1000 for key in ("seconds", "cpu")}
            print(
                f"{name:24} {used['seconds']:7.1f} s, {per_job['seconds']:6.1f} ms per job; "
                f"of the launcher {per_job['cpu']:6.1f} ms of CPU per job, peak {used['peak_mb']:5.0f} MB"
            )
        used = run_compare(folder)
        print(
            "{:24} {seconds:7.1f} s ({cpu:.1f} s of CPU), peak {peak_mb:5.0f} MB, page {page_mb:.1f} MB".format(
                "t2i compare", **used
            )
        )


if __name__ == "__main__":
    main()
