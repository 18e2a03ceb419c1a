"""Say how large a comparison has to be: `t2i plan multirun/pilot --difference 1% --power 0.8`.

From a pilot, a small sweep of a few seeds, it tells how many seeds, held-out images and timesteps find a difference of
that size, what that costs, and which of the three is the cheapest to raise. Without a pilot it says which to run.
"""

import argparse
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from t2i.cli.arguments import Parser, positive, run_folder
from t2i.cli.failing import run
from t2i.config import ConfigError

if TYPE_CHECKING:
    from t2i.comparison.planning import Goal
    from t2i.comparison.power import Size
    from t2i.comparison.results import Result
    from t2i.comparison.verdicts import AnyMetric, Comparison

PILOT = "t2i train -m sweep=pilot seed=0,1,2,3,4 loss.snr_gamma=1,5"
WHICH_PILOT = (
    "A plan needs a pilot: two settings that you want to compare, with five seeds each. Their differences tell how "
    "much seeds, images and noise vary; of two or three seeds, the plan would be a guess.\n\n"
    f"  {PILOT}\n  t2i plan multirun/pilot --difference 1%\n\n"
    "Take the data, the steps and the other settings that you mean to use: both differences and noise change with them."
)


def percentage(text: str) -> float:
    """The type of --difference: 1% or 0.01."""
    match = re.fullmatch(r"(\d*\.?\d+)\s*(%?)", text)
    value = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a part of the error, such as 1% or 0.01")
    return value


def probability(text: str) -> float:
    """The type of --power."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.05 < value <= 0.99:
        raise argparse.ArgumentTypeError(f"{text} must be a probability from 0.06 to 0.99; 0.8 is common")
    return value


def parser() -> Parser:
    parser = Parser("plan", __doc__)
    parser.add_argument("paths", nargs="*", type=run_folder, metavar="PATH", help="folder of the pilot's sweep")
    parser.add_argument(
        "--difference", type=percentage, default=0.01, metavar="1%", help="relative difference to find (default: 1%%)"
    )
    parser.add_argument(
        "--power", type=probability, default=0.8, help="probability of finding it, if it exists (default: %(default)s)"
    )
    parser.add_argument(
        "--comparisons",
        type=positive,
        help="variants compared with the baseline at once, for Holm's correction (default: those of the pilot)",
    )
    parser.add_argument("--metric", help="metric of the errors (default: val/loss)")
    parser.add_argument("--by", help="keys that tell variants apart, as for t2i compare")
    parser.add_argument("--baseline", help="variant to compare with, as for t2i compare")
    parser.add_argument(
        "--images", type=positive, metavar="N", help="held-out images at most (default: those of the pilot's data set)"
    )
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    held = list(map(_has_runs, options.paths))
    if not any(held):
        print(WHICH_PILOT)
        return
    from t2i.comparison.grouping import compare
    from t2i.comparison.metric_choice import choose_metric
    from t2i.comparison.planning import Goal
    from t2i.comparison.results import read_results

    by = options.by.split(",") if options.by else None
    comparison = compare(read_results(options.paths), by, options.baseline)
    metric = choose_metric(comparison, options.metric)
    tested = max(len(comparison.verdicts(metric)), 1)
    goal = Goal(log_difference(options.difference), options.power, options.comparisons or tested)
    show(comparison, metric, goal, options.images)


def _has_runs(path: Path) -> bool:
    from t2i.runs.folder import INFO

    if not path.exists():
        raise ConfigError(f"{path} does not exist; give the folder of a pilot's sweep, or none to hear which to run")
    return next(path.rglob(INFO), None) is not None


def log_difference(relative: float) -> float:
    """The log ratio of errors of which one is lower by this fraction."""
    from math import log1p

    return -log1p(-relative)


def show(comparison: "Comparison", metric: "AnyMetric", goal: "Goal", most_images: int | None) -> None:
    """Print the plan, and the command that follows it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from t2i.comparison.plan_wording import COLUMNS, notes, rows, title
    from t2i.comparison.plans import plan_of
    from t2i.runs.text import printable

    plan = plan_of(comparison, metric, goal, most_images)
    console = Console(markup=False, highlight=False)
    console.print(printable(title(plan)), style="bold")
    table = Table(*COLUMNS, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows(plan):
        table.add_row(*row, style="bold" if row[0] == "cheapest" else "")
    console.print(table)
    for note in notes(plan):
        console.print(printable(f"• {note}"))
    if plan.recommended:
        print(f"\n  {command(comparison.runs, plan.recommended)}")


def command(runs: "Sequence[Result]", size: "Size") -> str:
    """The sweep of this size, with the settings that the pilot's runs were started with."""
    own = ("seed", "sweep", "run", "validation.items", "validation.timesteps")
    values: dict[str, list[str]] = {}
    for run_ in runs:
        for override in run_.info.get("overrides", []):
            key, _, value = override.partition("=")
            if key not in own and value not in values.setdefault(key, []):
                values[key].append(value)
    seeds = ",".join(map(str, range(size.seeds))) if size.seeds <= 12 else f"range({size.seeds})"
    battery = [f"validation.items={size.images}"]
    if size.levels > 1:
        battery.append(f"validation.timesteps={size.levels}")
    words = ["t2i", "train", "-m", "sweep=planned", f"seed={seeds}", *battery]
    words += [f"{key}={','.join(several)}" for key, several in values.items()]
    return shlex.join(words)


if __name__ == "__main__":
    run(main)
