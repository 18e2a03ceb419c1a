"""What people prefer, on the terminal, as a figure and as a file."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.csv
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from t2i.comparison.bradley_terry import Lead
from t2i.comparison.charts import COLORS, LONGEST_IN_TITLE, create_axes, label_width, shorten
from t2i.comparison.people import People
from t2i.comparison.people_wording import (
    judge_rows,
    lead_text,
    order_rows,
    people_sentences,
    preference_rows,
    rate_text,
)
from t2i.comparison.significance import LEVEL
from t2i.comparison.tables import Cell
from t2i.runs.text import printable, spreadsheet_cell

if TYPE_CHECKING:
    from rich.console import Console

FILE = "people.csv"
PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.0f} %")
STYLES = {"better": "bright_blue", "worse": "red", "scope": "italic", "baseline": "bold"}
Row = tuple[str, float, float, float, str, str]  # label, estimate, low, high, text, outcome


def print_people(people: People, console: "Console") -> None:
    """Print the tables and the sentences."""
    baseline = people.labels[0]
    if rows := preference_rows(people):
        _print(console, f"What people prefer, against {baseline}: votes won, 95 % interval, p after Holm", rows)
    if rows := order_rows(people):
        _print(console, f"Order by the votes on all pairs (Bradley–Terry); win rates against {baseline}", rows)
    if rows := judge_rows(people):
        _print(console, "Judges", rows)
    for outcome, sentence in people_sentences(people):
        console.print(printable(f"• {sentence}"), style=STYLES.get(outcome, ""))
    for warning in people.tally.warnings:
        console.print(printable(f"! {warning}"), style="yellow")


def _print(console: "Console", title: str, rows: list[dict[str, Cell]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, cell in rows[0].items():
        table.add_column(Text(name), justify="left" if cell.value is None else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell.text), STYLES.get(cell.style, "")) for cell in row.values()))
    console.print("\n" + printable(title), style="bold")
    console.print(table)


def people_figures(people: People) -> dict[str, Figure]:
    """Name -> the win rates against the baseline, and for more than two variants those that the order predicts."""
    baseline = shorten(people.labels[0], LONGEST_IN_TITLE)
    direct: list[Row] = [
        (each.variant, each.rate.estimate, each.rate.low, each.rate.high, rate_text(each.rate), each.outcome)
        for each in people.preferences
    ]
    figures = {"people": _chart(direct, f"Votes won against {baseline}")} if direct else {}
    if len(people.connected) > 2:
        figures["people_order"] = _chart(_predicted(people), "Win rates predicted from the votes on all pairs")
    return figures


def _predicted(people: People) -> list[Row]:
    return [
        (label, *lead.as_rate, lead_text(lead), _outcome(people, label, lead))
        for label, lead in people.order
        if label != people.labels[0]
    ]


def _outcome(people: People, label: str, lead: Lead) -> str:
    baseline = people.labels[0]
    _, p = people.leads[(label, baseline) if lead.estimate > 0 else (baseline, label)]
    return "same" if not p < LEVEL else "better" if lead.estimate > 0 else "worse"


def _chart(rows: list[Row], title: str) -> Figure:
    labels = [shorten(label) for label, *_ in rows]
    figure, (axes,) = create_axes([4], 0.32 * len(rows) + 0.3, left=0.3 + label_width(labels), right=1.5)
    positions = np.arange(len(rows))[::-1].tolist()
    colors = [COLORS[outcome] for *_, outcome in rows]
    faces = ["white" if outcome == "same" else COLORS[outcome] for *_, outcome in rows]
    axes.hlines(positions, [low for _, _, low, *_ in rows], [high for _, _, _, high, *_ in rows], colors, linewidth=2)
    axes.scatter([rate for _, rate, *_ in rows], positions, 45, faces, edgecolors=colors, linewidths=1.2, zorder=3)
    for position, row, color in zip(positions, rows, colors, strict=True):
        axes.text(1.03, position, row[4], transform=axes.get_yaxis_transform(), va="center", fontsize=9, color=color)
    axes.axvline(0.5, color="black", linewidth=0.8)
    axes.set_yticks(positions, labels)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlim(0, 1)
    axes.xaxis.set(major_formatter=PERCENT, major_locator=MultipleLocator(0.25))
    axes.set_xlabel("win rate, 95 % interval (hollow: not proven)")
    axes.set_title(title)
    return figure


def write_people(people: People, folder: Path) -> None:
    """people.csv: one row for each pair of variants that was judged. A formula of a spreadsheet gets an apostrophe."""
    rows = []
    for i, other in enumerate(people.labels):
        for variant in people.labels[i + 1 :]:
            if found := people.rate(variant, other):
                rate, alone = found
                row = {"variant": variant, "against": other, **{f"win_{k}": v for k, v in vars(rate).items()}}
                row |= {f"win_{k}_these_judges": getattr(alone, k) for k in ("low", "high", "p")}
                rows.append(row | _lead_fields(people, variant, other))
    names = list(rows[0]) if rows else ["variant", "against"]
    columns = {name: [_cell(row[name]) for row in rows] for name in names}
    pa.csv.write_csv(pa.table(columns), folder / FILE)


def _cell(value: str | float) -> str | float:
    return spreadsheet_cell(value) if isinstance(value, str) else value


def _lead_fields(people: People, variant: str, other: str) -> dict[str, float]:
    """The difference of the two strengths in log-odds."""
    key = (variant, other) if (variant, other) in people.leads else (other, variant)
    if key not in people.leads:
        return dict.fromkeys(("log_odds", "log_odds_low", "log_odds_high", "log_odds_p", "log_odds_p_holm"), np.nan)
    (lead, p), sign = people.leads[key], 1 if key[0] == variant else -1
    low, high = sorted((sign * lead.low, sign * lead.high))
    return {
        "log_odds": sign * lead.estimate,
        "log_odds_low": low,
        "log_odds_high": high,
        "log_odds_p": lead.p,
        "log_odds_p_holm": p,
    }
