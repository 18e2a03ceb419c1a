"""List runs: `t2i runs [PATH ...]`, of multirun/ by default.

It shows their states, the settings in which they differ, val/loss (and that of averaged weights), steps and time, the
newest first, and sweeps as groups. Folders that are damaged are listed with the reason.
"""

import json
import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from t2i.cli.arguments import Parser, run_folder
from t2i.cli.failing import run
from t2i.config import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from t2i.comparison.results import Result
    from t2i.inspection.run_list import Group

NARROW = 120  # columns of a terminal, below which settings stand below the names
ORDERS = ("date", "loss", "time", "steps", "name")
LONGEST_SETTINGS, LONGEST_REASON = 140, 240  # characters; --json has all
SAID_BY_STATE = ("running", "paused", "interrupted", "never begun")  # their reasons say no more than state and step
STYLES = {"finished": "green", "running": "cyan", "failed": "red", "killed": "red", "unreadable": "red"}


def parser() -> Parser:
    parser = Parser("runs", __doc__)
    parser.add_argument("paths", nargs="*", type=run_folder, metavar="PATH", help="folders of runs (default: multirun)")
    parser.add_argument("--sort", choices=ORDERS, default="date", help="what comes first (default: the newest)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--delete-failed", action="store_true", help="remove the folders of failed runs, after asking")
    parser.add_argument("--yes", action="store_true", help="with --delete-failed: don't ask")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    if options.yes and not options.delete_failed:
        raise ConfigError("--yes is for --delete-failed")
    if options.json and options.delete_failed:
        raise ConfigError("--json lists runs; leave it out to delete some")
    paths = options.paths or [Path("multirun")]
    for path in paths:
        if not path.is_dir():
            hint = "; `t2i train` makes it with the first run" if not options.paths else ""
            raise ConfigError(f"{path} is not a folder{hint}")
    from t2i.comparison.results import read_results
    from t2i.inspection.run_list import as_json, grouped

    results = read_results(paths)
    if options.delete_failed:
        delete_failed(results, options.yes)
    elif options.json:
        print(json.dumps(as_json(grouped(results, options.sort)), indent=2, ensure_ascii=False))
    else:
        show(grouped(results, options.sort))


def show(groups: "Sequence[Group]") -> None:
    """Print a table for each group, and why runs have not finished."""
    from rich.console import Console

    from t2i.comparison.charts import shorten
    from t2i.runs.text import printable

    console = Console(markup=False, highlight=False)
    for group in groups:
        title = group.name or ("runs of no sweep" if len(groups) > 1 else "runs")
        console.print()
        console.print(printable(f"{title}: {group.counts}"), style="bold")
        console.print(_table(group, console.width < NARROW))
        names: dict[tuple[str, str], list[str]] = {}
        for row in group.rows:
            if row.run.reason and row.run.state not in SAID_BY_STATE:
                names.setdefault((row.run.state, shorten(row.run.reason, LONGEST_REASON)), []).append(row.name)
        for (state, reason), those in names.items():
            console.print(printable(f"  {', '.join(those)}: {reason}"), style=STYLES.get(state, ""))


def _table(group: "Group", narrow: bool) -> "Table":
    """In a narrow terminal without dates, and with the settings below the names; a sweep's jobs are named by them."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from t2i.comparison.charts import shorten
    from t2i.comparison.wording import number
    from t2i.runs.text import printable

    rows = group.rows
    averaged = any(math.isfinite(row.loss(averaged=True)) for row in rows)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("run", *([] if narrow else ["settings"])):
        table.add_column(heading, overflow="fold")
    table.add_column("state", no_wrap=True)
    for heading in ("step", "val/loss", *(["ema"] if averaged else []), "time", *([] if narrow else ["begun"])):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        name, settings = printable(row.name), shorten(printable(row.settings), LONGEST_SETTINGS)
        first = [Text(name), Text(settings, "dim")]
        if narrow:
            below = f"\n{settings}" if settings and not group.name else ""
            first = [Text.assemble(name, (below, "dim"))]
        loss = ("train " if row.on_training_images else "") + number(row.loss(), 5)  # val/train_loss
        losses = [loss, *([number(row.loss(averaged=True), 5)] if averaged else [])]
        state = Text(row.run.state, STYLES.get(row.run.state, ""))
        last = [] if narrow else [row.date]
        table.add_row(*first, state, row.steps, *losses, duration(row.run.hours), *last)
    return table


def duration(hours: float) -> str:
    """0:42, 3:07 (minutes and seconds), 2 h 05 min; a dash for NaN."""
    if not math.isfinite(hours):
        return "–"
    minutes, seconds = divmod(round(hours * 3600), 60)
    return f"{minutes}:{seconds:02}" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def delete_failed(results: "Sequence[Result]", yes: bool) -> None:
    """Show the failed runs, ask, and remove their folders."""
    from t2i.comparison.results import read_results
    from t2i.data.filling import readable
    from t2i.inspection.deletion import choose, delete, size
    from t2i.runs.text import printable

    others: Sequence[Result] = []
    with suppress(ConfigError):  # there are none
        others = read_results([Path("multirun")])
    choice = choose(results, others)
    for kept, why in choice.keep.items():
        print(printable(f"kept: {kept.folder} ({kept.state}): {why}"))
    if not choice.delete:
        print("no failed run can be deleted" if choice.keep else "no run has failed")
        return
    for failed in choice.delete:
        shown = failed.reason if len(failed.reason) < 160 else f"{failed.reason[:160]}…"
        print(printable(f"{failed.folder} ({readable(size(failed.folder))}): {failed.state}: {shown}"))
    if not yes and not _agreed(len(choice.delete)):
        print("nothing was deleted")
        return
    for failed in choice.delete:
        try:
            delete(failed)
            print(printable(f"deleted: {failed.folder}"))
        except ConfigError as error:
            print(printable(f"kept: {error}"))


def _agreed(number: int) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("nobody can be asked here; add --yes to delete these folders")
    what = "this folder" if number == 1 else f"these {number} folders"
    return input(f"delete {what}, with everything in them? [y/N] ").strip().lower() in ("y", "yes")


if __name__ == "__main__":
    run(main)
