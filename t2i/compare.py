"""Say which runs are better, and whether it is more than noise: `t2i compare multirun/gamma`.

It reads the run folders, whatever tracker the runs used. It prints tables and verdicts, and writes an HTML page,
figures and the numbers behind them.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from t2i.cli.arguments import Parser, run_folder
from t2i.cli.failing import run
from t2i.config import ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from t2i.api.comparing import Compared
    from t2i.comparison.people import People
    from t2i.comparison.tables import Cell
    from t2i.comparison.verdicts import AnyMetric, Comparison

STYLES = {
    "better": "bright_blue",
    "worse": "red",
    "scope": "italic",
    "baseline": "bold",
    "failed": "red",
    "killed": "red",
}


def parser() -> Parser:
    parser = Parser("compare", __doc__)
    parser.add_argument("paths", nargs="+", type=run_folder, metavar="PATH", help="folder of a sweep, or of a run")
    parser.add_argument(
        "--by", help="keys that tell variants apart: loss.snr_gamma,optimizer.lr (default: all that differ)"
    )
    parser.add_argument("--baseline", help="variant to compare with: loss=mse, or loss.snr_gamma=5,optimizer.lr=3e-4")
    parser.add_argument("--metric", help="metric to test and to sort by (default: val/loss)")
    parser.add_argument("--step", type=int, help="compare all runs at this step (default: finished runs at their end)")
    parser.add_argument("--out", type=Path, help="folder for page, figures and numbers (default: comparison/ in PATH)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    from t2i.comparison.grouping import compare
    from t2i.comparison.metric_choice import choose_metric
    from t2i.comparison.people import people_of
    from t2i.comparison.results import read_results
    from t2i.runs.links import refuse_links_out

    out = options.out or options.paths[0] / "comparison"
    for path in options.paths:  # may be a stranger's
        if Path(os.path.abspath(out)).is_relative_to(os.path.abspath(path)):
            refuse_links_out(path, out)
    by = options.by.split(",") if options.by else None
    comparison = compare(read_results(options.paths), by, options.baseline, options.step)
    metric = choose_metric(comparison, options.metric)
    people = people_of(comparison, options.paths)
    show(comparison, metric)
    show_people(people)
    with suppress(PermissionError):
        out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK):
        raise ConfigError(f"{out} can't be written; use --out DIR for the page, the figures and the numbers")
    write(comparison, metric, out, people)
    print(out / "comparison.html")


def show(comparison: "Comparison", metric: "AnyMetric") -> None:
    """Print the tables and the verdicts."""
    from rich.console import Console

    from t2i.comparison.excerpt import excerpt, note, shown_warnings
    from t2i.comparison.family import tree
    from t2i.comparison.tables import bin_names, difference_rows, run_rows, variant_rows
    from t2i.comparison.tradeoff import judgements, points
    from t2i.comparison.wording import sentences, weights_name, word_notes
    from t2i.runs.text import printable

    console = Console(markup=False, highlight=False)
    whole, comparison = comparison, excerpt(comparison, metric)
    for text in [*whole.notes, note(comparison, metric)] if comparison.whole else whole.notes:
        console.print(printable(text))
    for line in tree(whole.results):
        console.print(printable(line))
    bins = bin_names(comparison, metric)
    groups: dict[str, Sequence[str]] = {
        f"{metric.name}, best first: mean and standard deviation over seeds": (),
        "Cost": ("images/s", "GB", "hours"),
    }
    if bins:
        groups[f"Epsilon error by SNR bin, {weights_name(metric)}"] = bins
    _print_groups(console, variant_rows(comparison, metric), groups)
    if rows := difference_rows(comparison, metric):
        title = f"{metric.name} against {comparison.baseline.label}: difference, 95 % interval, p after Holm"
        by_bin = {"Difference by SNR bin in %; * larger than the noise": bins} if bins else {}
        _print_groups(console, rows, {title: (), **by_bin})
        spoken = [
            ("note", word_notes(comparison.verdicts(metric), comparison.num_tests(metric))),
            *sentences(comparison, metric),
        ]
        for outcome, sentence in filter(lambda each: each[1], spoken):
            console.print(printable(f"• {sentence}"), style=STYLES.get(outcome, ""))
    if found := points(comparison, metric.averaged):
        console.print("\nGained (val/loss since step 0) and forgotten (ref/loss)", style="bold")
        for sentence in judgements(comparison, found, metric.averaged):
            console.print(printable(f"• {sentence}"))
    if rows := [row for row in run_rows(comparison, metric) if row["not compared"].text]:
        columns = ["run", "state", "step", metric.name, "not compared"]
        _print_groups(console, [{name: row[name] for name in columns} for row in rows], {"Not compared": ()})
    for warning in shown_warnings(comparison):
        console.print(printable(f"! {warning}"), style="yellow")


def show_people(people: "People | None") -> None:
    """Print what the votes of people say, if there are any."""
    from rich.console import Console

    from t2i.comparison.people_report import print_people

    if people is not None:
        print_people(people, Console(markup=False, highlight=False))


def _print_groups(console: "Console", rows: list[dict[str, "Cell"]], groups: Mapping[str, Sequence[str]]) -> None:
    """Print as few tables as fit the width of the terminal.

    groups: title -> columns. The first group has the columns that no other group names.
    """
    in_groups = {name for columns in groups.values() for name in columns}
    label, *first = [name for name in rows[0] if name not in in_groups]
    titles: list[str] = []
    columns: list[str] = []
    for title, group in groups.items():
        more = list(group) or first
        if titles and _full_width(console, _table(rows, [label, *columns, *more])) > console.width:
            _print_table(console, rows, titles, [label, *columns])
            titles, columns = [], []
        titles.append(title)
        columns += more
    _print_table(console, rows, titles, [label, *columns])


def _print_table(console: "Console", rows: list[dict[str, "Cell"]], titles: list[str], columns: list[str]) -> None:
    from t2i.runs.text import printable

    console.print("\n" + printable(". ".join(titles)), style="bold")
    console.print(_table(rows, columns))


def _full_width(console: "Console", table: "Table") -> int:
    """The width at which no line wraps."""
    from rich.measure import Measurement

    return Measurement.get(console, console.options.update(max_width=1000), table).maximum


def _table(rows: list[dict[str, "Cell"]], columns: list[str]) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from t2i.runs.text import printable

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        is_text = rows[0][name].value is None
        wraps = is_text and name not in ("state", "verdict")
        heading = Text(printable(name).replace(" ", "\n"))
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=not wraps, overflow="fold")
    for row in rows:
        cells = [row[name] for name in columns]
        marked = [f"{cell.text}*" if cell.style in ("better", "worse") and cell.value else cell.text for cell in cells]
        table.add_row(
            *(Text(printable(text), STYLES.get(cell.style, "")) for text, cell in zip(marked, cells, strict=True))
        )
    return table


def write(comparison: "Comparison", metric: "AnyMetric", folder: Path, people: "People | None" = None) -> None:
    """Write the page, the figures and the numbers to `folder`."""
    from rich.progress import track

    from t2i.comparison.html_report import write_page
    from t2i.comparison.people_report import write_people
    from t2i.comparison.tables import write_results
    from t2i.runs.full_disk import naming

    with naming(folder):
        write_results(comparison, folder)
        if people is not None:
            write_people(people, folder)
        write_page(comparison, metric, folder, lambda metrics: track(metrics, "drawing", transient=True), people)


class _Callable(ModuleType):
    """This module, which can be called, too: t2i.compare("multirun/gamma") in Python is the command of that name."""

    def __call__(self, *paths: str | Path, **options: Any) -> "Compared":
        from t2i.api.comparing import compare

        return compare(*paths, **options)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    run(main)
