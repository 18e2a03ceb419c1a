"""The comparison as one HTML file that needs no other, and its figures as files."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from t2i.comparison import curves, figures, snr_plot
from t2i.comparison.charts import STYLE
from t2i.comparison.curves import MOST_LINES
from t2i.comparison.excerpt import MOST_RUNS, excerpt, note, shown_metrics, shown_warnings
from t2i.comparison.family import tree
from t2i.comparison.page_parts import data_uri, svg_uri, template
from t2i.comparison.people import People
from t2i.comparison.people_report import people_figures
from t2i.comparison.people_wording import judge_rows, order_rows, people_sentences, preference_rows
from t2i.comparison.sample_grid import gallery, gallery_image, row_note, strip
from t2i.comparison.tables import bin_names, difference_rows, run_rows, variant_rows
from t2i.comparison.tradeoff import judgements, points, tradeoff
from t2i.comparison.verdicts import AnyMetric, Comparison
from t2i.comparison.wording import sentences, weights_name, word_notes
from t2i.config.secrets import redact
from t2i.evaluation.score_metric import ScoreMetric
from t2i.runs.files import replacing

FIGURES: dict[str, Callable[[Comparison, Any], Figure]] = {
    "overview": figures.overview,
    "differences": figures.differences,
    "curves": curves.curves,
    "snr": snr_plot.snr,
}


def write_page(
    comparison: Comparison,
    metric: AnyMetric,
    folder: Path,
    progress: Callable[[list[AnyMetric]], Iterable[AnyMetric]] = iter,
    people: People | None = None,
) -> None:
    """Write comparison.html with all metrics, `metric` selected, and the figures of `metric` as PNG files.

    progress: iterates over the metrics, each of which takes a while to draw, and may show how far it is.
    """
    whole, comparison = comparison, excerpt(comparison, metric)
    with matplotlib.rc_context(STYLE):
        for name in _figure_names(comparison, metric):
            with replacing(folder / f"{name}.png") as file:
                FIGURES[name](comparison, metric).savefig(file, dpi=150)
        metrics = shown_metrics(whole, metric)
        drawings = {other: _figure_uris(comparison, other) for other in progress(metrics)}
        found = {averaged: points(comparison, averaged) for averaged in (False, True)}
        tradeoffs = {
            averaged: (svg_uri(tradeoff(comparison, those)), judgements(comparison, those, averaged))
            for averaged, those in found.items()
            if those
        }
        if chosen := found[metric.averaged]:
            with replacing(folder / "tradeoff.png") as file:
                tradeoff(comparison, chosen).savefig(file, dpi=150)
    shown = gallery(comparison)
    if shown.rows:
        with replacing(folder / "samples.png") as file:
            gallery_image(comparison, shown).save(file)
    text = template(Path(__file__).with_name("page.html")).render(
        title=Path(os.path.commonpath([run.folder for run in whole.results])).name,
        comparison=comparison,
        whole=whole,
        metrics=metrics,
        shown_note=note(comparison, metric),
        shown_warnings=shown_warnings,
        most_runs=MOST_RUNS,
        most_lines=MOST_LINES,
        chosen=metric,
        drawings=drawings,
        tradeoffs=tradeoffs,
        sentences=sentences,
        word_notes=word_notes,
        weights_name=weights_name,
        bin_names=bin_names,
        variant_rows=variant_rows,
        difference_rows=difference_rows,
        run_rows=run_rows,
        family=tree(whole.results),
        people=people and _people_section(people, folder),
        gallery=shown,
        row_note=row_note,
        strip_uri=lambda images: data_uri("webp", strip(images).save, format="webp", quality=90),
    )
    with replacing(folder / "comparison.html") as file:
        file.write_text(redact(text), encoding="utf-8")


def _people_section(people: People, folder: Path) -> dict[str, Any]:
    """What the page shows of people's votes; their figures become files, too."""
    with matplotlib.rc_context(STYLE):
        figures = people_figures(people)
        for name, figure in figures.items():
            with replacing(folder / f"{name}.png") as file:
                figure.savefig(file, dpi=150)
        drawings = list(map(svg_uri, figures.values()))
    return {
        "baseline": people.labels[0],
        "sentences": people_sentences(people),
        "warnings": people.tally.warnings,
        "preferences": preference_rows(people),
        "order": order_rows(people),
        "judges": judge_rows(people),
        "drawings": drawings,
    }


def _figure_names(comparison: Comparison, metric: AnyMetric) -> list[str]:
    """The figures that can be drawn: without a verdict, only those that need no baseline; of images no "snr"."""
    names = list(FIGURES) if comparison.verdicts(metric) else ["overview", "curves"]
    if not isinstance(metric, ScoreMetric):
        return names
    once = any(len(run.curve(metric)) < 2 for run in comparison.runs)  # measured at the end, or after it
    return [name for name in names if name != "snr" and not (once and name == "curves")]


def _figure_uris(comparison: Comparison, metric: AnyMetric) -> dict[str, str]:
    """Name -> the figure as a data URI. "snr" is the same for all metrics of the same weights, so only one has it."""
    return {
        name: svg_uri(FIGURES[name](comparison, metric))
        for name in _figure_names(comparison, metric)
        if name != "snr" or (metric.mean == "geometric" and metric.against is None)
    }
