"""The comparison as one HTML file that needs nothing else, and its figures as files."""

import base64
import os
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from t2i.comparison import curves, figures, snr_plot
from t2i.comparison.charts import STYLE
from t2i.comparison.sample_grid import gallery, row_note, sheet, strip
from t2i.comparison.tables import difference_rows, run_rows, setting_rows
from t2i.comparison.verdicts import Comparison
from t2i.evaluation.metrics import Metric

FIGURES: dict[str, Callable[[Comparison, Metric], Figure]] = {
    "overview": figures.overview,
    "differences": figures.differences,
    "curves": curves.curves,
    "snr": snr_plot.snr,
}


def write_page(
    comparison: Comparison, metric: Metric, folder: Path, progress: Callable[[list[Metric]], Iterable[Metric]] = iter
) -> None:
    """comparison.html with all metrics, beginning with `metric`; and the figures of `metric` as PNG.

    progress: goes through the metrics, each of which takes a while, and shows how far it is.
    """
    with matplotlib.rc_context(STYLE):
        for name in _names(comparison, metric):
            FIGURES[name](comparison, metric).savefig(folder / f"{name}.png", dpi=150)
        drawings = {each: _sources(comparison, each) for each in progress(comparison.metrics)}
    shown = gallery(comparison)
    if shown.rows:
        sheet(comparison, shown).save(folder / "samples.png")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    )
    text = page.render(
        title=Path(os.path.commonpath([run.folder for run in comparison.results])).name,
        comparison=comparison,
        chosen=metric,
        drawings=drawings,
        setting_rows=setting_rows,
        difference_rows=difference_rows,
        run_rows=run_rows,
        gallery=shown,
        row_note=row_note,
        strip_source=lambda images: _source("webp", strip(images).save, format="webp", quality=90),
    )
    (folder / "comparison.html").write_text(text, encoding="utf-8")


def _names(comparison: Comparison, metric: Metric) -> list[str]:
    """The figures that there are: those that compare only where there are two settings to compare."""
    return list(FIGURES) if comparison.verdicts(metric) else ["overview", "curves"]


def _sources(comparison: Comparison, metric: Metric) -> dict[str, str]:
    """Name -> the figure, as a source of an image."""
    return {
        name: _source("svg+xml", FIGURES[name](comparison, metric).savefig, format="svg", metadata={"Date": None})
        for name in _names(comparison, metric)
        if name != "snr" or metric.mean == "geometric"  # the same for all metrics of the same weights
    }


def _source(kind: str, save: Callable, **how: Any) -> str:
    """An address that holds the image itself, so that the page needs no other file."""
    save(file := BytesIO(), **how)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
