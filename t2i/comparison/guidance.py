"""Scores of images against the guidance scale: a line for each model."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from t2i.comparison.charts import STYLE, VALUE, create_axes, draw_legend, shorten
from t2i.comparison.curves import PALETTE
from t2i.comparison.score_significance import score_interval
from t2i.runs.full_disk import naming
from t2i.runs.scores_file import StoredScores
from t2i.runs.text import printable

Scored = tuple[str, float, Mapping[str, StoredScores]]  # source, guidance scale, scores


def write_curves(file: Path, rows: Sequence[Scored]) -> None:
    """Draw a chart of each metric, with 95 % intervals."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE), naming(file):
        curves(rows).savefig(file, dpi=150)


def curves(rows: Sequence[Scored]) -> Figure:
    sources = list(dict.fromkeys(source for source, _, _ in rows))
    labels = [shorten(printable(Path(source).name or source)) for source in sources]
    metrics = list(rows[0][2])
    figure, panels = create_axes([3.6] * len(metrics), 3.2, legend=labels)
    for axes, metric in zip(panels, metrics, strict=True):
        for place, (source, label) in enumerate(zip(sources, labels, strict=True)):
            points = [(scale, scores[metric]) for other, scale, scores in rows if other == source and metric in scores]
            scales, values = [scale for scale, _ in points], np.array([scores.value for _, scores in points])
            low, high = np.array([score_interval(scores.values) for _, scores in points]).T
            spread = np.maximum([values - low, high - values], 0)
            color = PALETTE[place % len(PALETTE)]
            axes.errorbar(scales, values, spread, fmt="o-", color=color, capsize=3, linewidth=1.5, label=label)
        every = sorted({scale for _, scale, _ in rows})
        axes.xaxis.set(major_locator=FixedLocator(every), minor_locator=NullLocator(), major_formatter=VALUE)
        better = next(scores[metric].better for _, _, scores in rows if metric in scores)
        axes.set(xlabel="guidance scale", title=f"{metric} ({better} is better), 95 % intervals")
    draw_legend(figure, panels[0])
    return figure
