"""The chart of averages of several lengths: val/loss against the length."""

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from t2i.comparison.charts import STYLE
from t2i.comparison.significance import Difference


def length_curve(lengths: Sequence[float], changes: Sequence[Difference], best: int) -> Figure:
    """The relative difference to the raw weights, with its interval, of each length."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        order = sorted(range(len(lengths)), key=lambda i: lengths[i])
        x = [lengths[i] for i in order]
        estimates, lows, highs = (
            [100 * getattr(changes[i], name) for i in order] for name in ("estimate", "low", "high")
        )
        axes.axhline(0, color="0.5", linewidth=1)
        axes.annotate("raw weights", (1, 0), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="0.4")
        axes.fill_between(x, lows, highs, alpha=0.2, linewidth=0)
        axes.plot(x, estimates, marker="o")
        axes.plot([lengths[best]], [100 * changes[best].estimate], marker="o", markersize=9, color="C1", linestyle="")
        axes.annotate(
            f"best: {lengths[best]:g}",
            (lengths[best], 100 * changes[best].estimate),
            textcoords="offset points",
            xytext=(8, 8),
        )
        axes.set_xlabel("length of the average, as a fraction of the training (sigma_rel)")
        axes.set_ylabel("val/loss against the raw weights in %")
        axes.margins(x=0.1, y=0.15)
    return figure
