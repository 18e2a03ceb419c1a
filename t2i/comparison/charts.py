"""The look of all figures, and axes of a given size: sizes are in inches, so that nothing has to be measured."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from t2i.comparison.factors import as_text
from t2i.comparison.verdicts import Comparison, Setting

STYLE = {
    "font.size": 10,
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "text.parse_math": False,  # names of settings are no formulas
    "svg.fonttype": "none",  # smaller and quicker than outlines
    "svg.hashsalt": "t2i",
}
BETTER, WORSE, SAME = "#0072B2", "#D55E00", "#767676"  # also for the colour-blind
BETTER_TO_WORSE = LinearSegmentedColormap.from_list("better to worse", ["#4a98cf", "#ffffff", "#ee9a5e"])
COLORS = {"better": BETTER, "worse": WORSE, "same": SAME}
PERCENT = FuncFormatter(lambda share, _: f"{round(100 * share, 6):+g} %".replace("-", "−") if share else "0 %")
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
VALUE = FuncFormatter(lambda value, _: as_text(value))
LETTER, LINE = 0.08, 0.2  # width and height of a letter
LONGEST = 60  # letters of a name


def panels(
    widths: Sequence[float], height: float, left: float = 0.9, right: float = 0.3, legend: Sequence[str] = ()
) -> tuple[Figure, list[Axes]]:
    """Axes side by side, each with `left` before it, with room at the right and for the lines of a legend below."""
    total, below = sum(widths) + left * len(widths) + right, 0.55
    if legend:
        below += 0.05 + LINE * -(-len(legend) // legend_columns(total, legend))
    tall = height + below + 0.4
    figure, axes, start = Figure(figsize=(total, tall)), [], left
    for width in widths:
        axes.append(figure.add_axes((start / total, below / tall, width / total, height / tall)))
        start += width + left
    return figure, axes


def shade(figure: Figure, axes: Axes, change: np.ndarray) -> None:
    """Cells coloured by their change against the baseline, and in the room at the right a bar that says how much."""
    largest = max(np.nanmax(np.abs(change)), 1e-9)
    image = axes.imshow(change, cmap=BETTER_TO_WORSE, norm=TwoSlopeNorm(0, -largest, largest), aspect="auto")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    inch = 1 / (axes.get_position().width * figure.get_figwidth())
    beside = axes.inset_axes((1 + 0.15 * inch, 0, 0.2 * inch, 1))
    bar = figure.colorbar(image, cax=beside, format=PERCENT, ticks=MaxNLocator(5))
    bar.set_label("against the baseline")
    bar.outline.set_visible(False)


def legend_columns(width: float, labels: Sequence[str]) -> int:
    return max(1, int(width / (room(labels) + 0.6)))


def draw_legend(figure: Figure, axes: Axes) -> None:
    """The labels of `axes`, each once, at the bottom."""
    handles = {text: handle for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    columns = legend_columns(figure.get_figwidth(), list(handles))
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 0.0), "ncols": columns}
    figure.legend(handles.values(), handles.keys(), **place, fontsize=9, handlelength=2.8)


def name(setting: Setting, comparison: Comparison) -> str:
    """Its label in a figure."""
    return f"{shorten(setting.label)} (baseline)" if setting is comparison.baseline else shorten(setting.label)


def shorten(text: str) -> str:
    """As much as a figure has room for."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def room(labels: Sequence[str]) -> float:
    """The width of the longest."""
    return LETTER * max(map(len, labels), default=0)
