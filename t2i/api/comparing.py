"""`t2i.compare(...)`: what the command prints and writes, as objects."""

from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.api.folders import find_folder
from t2i.api.pictures import svg
from t2i.config import ConfigError

if TYPE_CHECKING:
    import pandas

    from t2i.comparison.verdicts import AnyMetric, Comparison

VERDICT_COLUMNS = ("difference", "low", "high", "p", "verdict")


class Compared:
    """Runs that are compared by one metric. Nothing is written before `page` is asked for."""

    def __init__(self, comparison: "Comparison", metric: "AnyMetric", out: Path):
        self.comparison, self.metric, self._out = comparison, metric, out

    @cached_property
    def table(self) -> "pandas.DataFrame":
        """A row for each variant, best first.

        Columns: seeds, the metric's mean over them, its change since the start, SNR bins, cost; and against the
        baseline the relative difference, its 95 % interval, p after Holm's correction and the verdict. The baseline's
        own row has NaN there.
        """
        import pandas

        from t2i.comparison.tables import variant_rows
        from t2i.comparison.wording import verdict_word

        tested = {one.variant.label: one for one in self.comparison.verdicts(self.metric)}
        rows = []
        for row in variant_rows(self.comparison, self.metric):
            values = {name: cell.text if cell.value is None else cell.value for name, cell in row.items()}
            if (one := tested.get(row["variant"].text)) is not None:
                found = (one.total.estimate, one.total.low, one.total.high, one.p, verdict_word(one))
                values |= dict(zip(VERDICT_COLUMNS, found, strict=True))
            rows.append(values)
        table = pandas.DataFrame(rows, columns=self._columns(rows[0])).set_index("variant")
        table["verdict"] = table["verdict"].fillna("")
        return table

    def _columns(self, row: dict[str, Any]) -> list[str]:
        """What matters most comes first: the metric, then the verdict."""
        names = [name for name in row if name not in VERDICT_COLUMNS]
        place = names.index("since start") + 1
        return [*names[:place], *VERDICT_COLUMNS, *names[place:]]

    @cached_property
    def verdicts(self) -> list[str]:
        """A sentence for each variant that is not the baseline; the last says what the intervals cover."""
        from t2i.comparison.wording import sentences

        return [sentence for _, sentence in sentences(self.comparison, self.metric)]

    @property
    def notes(self) -> list[str]:
        """What was left out, and warnings."""
        return [*self.comparison.notes, *self.comparison.warnings]

    @cached_property
    def page(self) -> Path:
        """The HTML page, as the command writes it, with its figures and numbers."""
        from t2i.comparison.html_report import write_page
        from t2i.comparison.tables import write_results

        try:
            self._out.mkdir(parents=True, exist_ok=True)
            write_results(self.comparison, self._out)
            write_page(self.comparison, self.metric, self._out)
        except PermissionError as error:
            raise ConfigError(f"{self._out} can't be written; give t2i.compare a folder: out=FOLDER") from error
        return self._out / "comparison.html"

    def __repr__(self) -> str:
        return "\n".join([repr(self.table), *self.verdicts])

    def _repr_html_(self) -> str:
        """Table without SNR bins, verdicts and the overview figure."""
        from t2i.comparison.figures import overview
        from t2i.comparison.tables import bin_names

        table = self.table.drop(columns=bin_names(self.comparison, self.metric), errors="ignore").rename_axis(None)
        lines = "".join(f"<li>{escape(sentence)}</li>" for sentence in self.verdicts)
        notes = "".join(f"<p><i>{escape(note)}</i></p>" for note in self.notes)
        figure = svg(lambda: overview(self.comparison, self.metric), "the variants")
        return f"{table.to_html(na_rep='–', float_format='{:.4g}'.format)}<ul>{lines}</ul>{notes}{figure}"


def compare(
    *paths: str | Path,
    by: str | list[str] | None = None,
    baseline: str | None = None,
    metric: str | None = None,
    step: int | None = None,
    out: str | Path | None = None,
) -> Compared:
    """Say which runs are better, and whether it is more than noise, as `t2i compare PATH ...` does.

    paths: folders of sweeps or runs, or their names in multirun/. by, baseline, metric, step, out: the options of the
    command. Raises ConfigError if there is nothing to compare.
    """
    from t2i.comparison.grouping import compare
    from t2i.comparison.metric_choice import choose_metric
    from t2i.comparison.results import read_results
    from t2i.runs.links import refuse_links_out

    if not paths:
        raise ConfigError('what is to be compared? For example t2i.compare("multirun/gamma")')
    folders = [find_folder(path) for path in paths]
    keys = by.split(",") if isinstance(by, str) else by
    comparison = compare(read_results(folders), keys, baseline, step)
    written = Path(out) if out is not None else folders[0] / "comparison"
    for folder in folders:  # may be a stranger's
        if written.absolute().is_relative_to(folder.absolute()):
            refuse_links_out(folder, written)
    return Compared(comparison, choose_metric(comparison, metric), written)
