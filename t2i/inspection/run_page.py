"""The page of one run: how it is, its curves, its samples over time, its settings."""

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import matplotlib

from t2i.comparison.charts import STYLE
from t2i.comparison.page_parts import data_uri, svg_uri
from t2i.comparison.results import Result
from t2i.comparison.sample_grid import strip
from t2i.comparison.wording import number, percent
from t2i.inspection import pages
from t2i.inspection.run_figures import charts
from t2i.inspection.run_list import last_step
from t2i.inspection.run_samples import samples_of
from t2i.inspection.run_settings import changed, everything
from t2i.runs.next_steps import Step, next_steps
from t2i.runs.records import headline
from t2i.runs.text import printable, spoken_time
from t2i.sweeps.manifest import MANIFEST

LOGS = ("train.log", "console.log")  # of a run; of a job of a sweep that ended before it logged
LOG_BYTES, LOG_LINES = 20_000, 40  # of its end that are shown
FACTS = {  # of run.json -> what they are called
    "device": "device",
    "gpu": "GPU",
    "driver": "driver",
    "precision": "precision",
    "num_processes": "processes",
    "parameters": "parameters",
    "trained_parameters": "trained parameters",
    "pictures": "images",
    "code_revision": "code revision",
    "started": "begun",
    "ended": "ended",
    "tracker_id": "tracker's id",
}


def write_page(run: Result, file: Path, renewed: int | None = None) -> None:
    """Write the page. renewed: the seconds after which it loads itself anew, while somebody writes it."""
    with matplotlib.rc_context(STYLE):
        drawn = {title: (svg_uri(figure), text) for title, (figure, text) in charts(run.lines, run.forked_at).items()}
    samples = samples_of(run)
    pages.write(
        file,
        "run",
        run=run,
        renewed=renewed,
        progress=progress(run),
        facts=headline_facts(run),
        steps=steps_of(run),
        charts=drawn,
        ancestors=[(printable(str(folder)), step) for folder, step in run.ancestors],
        samples=samples,
        large=[data_uri("webp", image.save, format="webp", quality=88) for image in samples.latest],
        rows=[(step, data_uri("webp", strip(images).save, format="webp", quality=85)) for step, images in samples.rows],
        changed=changed(run),
        typed=[text for text in run.info.get("overrides", []) if isinstance(text, str)],
        everything=everything(run),
        about=about(run),
        latest=[(name, number(value, 5)) for name, value in sorted(run.latest.items()) if name != "step"],
        log=end_of_log(run.folder),
    )


def steps_of(run: Result) -> list[Step]:
    """What to type next, but for making this page of a run that has ended."""
    in_sweep = (run.folder.parent / MANIFEST).is_file()
    steps = next_steps(run.folder, run.state, run.info, run.config.get("steps"), in_sweep)
    return [step for step in steps if run.state == "running" or not step.command.startswith("t2i show ")]


def progress(run: Result) -> float | None:
    """The share of the steps that are done; None if it is unknown."""
    steps = run.config.get("steps")
    return min(1.0, last_step(run) / steps) if steps else None


def headline_facts(run: Result) -> list[tuple[str, str]]:
    """What to know at a glance."""
    found = [("step", f"{last_step(run)} of {run.config.get('steps')}")] if run.config.get("steps") is not None else []
    for averaged in (False, True):
        name = headline(run.latest)
        name = name.replace("val/", "val/ema/", 1) if averaged else name
        if name in run.latest:
            found.append((name, _with_change(run, name)))
    if math.isfinite(run.hours):
        found.append(("time", spoken_time(run.hours)))
    if run.state == "running" and math.isfinite(left := hours_left(run)):
        found.append(("time left", spoken_time(left)))
    if math.isfinite(run.images_per_second):
        found.append(("images/s", number(run.images_per_second, 3)))
    if math.isfinite(run.peak_memory_gb):
        found.append(("memory at most", f"{number(run.peak_memory_gb, 3)} GB"))
    return found


def _with_change(run: Result, name: str) -> str:
    value = run.latest[name]
    start = next((line[name] for line in run.lines if line["step"] == 0 and name in line), None)
    if not start or not run.step or not math.isfinite(value / start):
        return number(value, 5)
    return f"{number(value, 5)} ({percent(value / start - 1)} since the start)"


def hours_left(run: Result) -> float:
    """At the speed so far, with validations and samples; NaN if it is unknown."""
    done, steps = last_step(run) - run.forked_at, run.config.get("steps")
    if not done > 0 or not isinstance(steps, int):
        return float("nan")
    return run.hours / done * (steps - run.forked_at - done)


def about(run: Result) -> list[tuple[str, str]]:
    """What run.json says of hardware, model and data."""
    found = [(text, _shown(run.info[name])) for name, text in FACTS.items() if run.info.get(name) not in (None, {})]
    packages = run.info.get("packages")
    if isinstance(packages, dict):
        found.append(("packages", ", ".join(f"{name} {version}" for name, version in packages.items())))
    if skipped := run.info.get("skipped"):
        number_of = len(skipped) if isinstance(skipped, list) else 0
        found.append(("images left out", f"{number_of}; run.json lists them"))
    return found


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(part)}" for name, part in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def end_of_log(folder: Path) -> list[str]:
    """The last lines of the run's log; none if it can't be read."""
    for file in (folder / name for name in LOGS):
        with suppress(OSError):
            if not file.is_file() or not (size := file.stat().st_size):
                continue
            with file.open("rb") as stream:
                stream.seek(max(0, size - LOG_BYTES))
                text = stream.read(LOG_BYTES).decode(errors="replace")
            return [printable(line) for line in text.splitlines()[-LOG_LINES:]]
    return []
