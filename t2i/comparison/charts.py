"""The style of all figures, and axes of a given size: sizes are in inches, so that nothing has to be measured."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from t2i.comparison.factors import as_text
from t2i.comparison.verdicts import Comparison, Variant

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
    "text.parse_math": False,  # labels of variants are no formulas
    "svg.fonttype": "none",  # smaller and faster than outlines
    "svg.hashsalt": "t2i",
}
BETTER, WORSE, SAME = "#0072B2", "#D55E00", "#767676"  # distinguishable for the colour-blind
BETTER_TO_WORSE = LinearSegmentedColormap.from_list("better to worse", ["#4a98cf", "#ffffff", "#ee9a5e"])
COLORS = {"better": BETTER, "worse": WORSE, "same": SAME}
PERCENT = FuncFormatter(lambda value, _: f"{round(100 * value, 6):+g} %".replace("-", "−") if value else "0 %")
SIGNED = FuncFormatter(lambda value, _: f"{value:+g}".replace("-", "−") if round(value, 12) else "0")
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
VALUE = FuncFormatter(lambda value, _: as_text(value))
CHARACTER_WIDTH, LINE_HEIGHT = 0.08, 0.2  # of text
LONGEST_LABEL, LONGEST_IN_TITLE = 60, 22  # characters


def create_axes(
    widths: Sequence[float], height: float, left: float = 0.9, right: float = 0.3, legend: Sequence[str] = ()
) -> tuple[Figure, list[Axes]]:
    """Axes next to each other, with a margin of `left` before each, and below them space for a legend's labels."""
    total_width, bottom = sum(widths) + left * len(widths) + right, 0.55
    if legend:
        bottom += 0.05 + LINE_HEIGHT * -(-len(legend) // _legend_columns(total_width, legend))
    total_height = height + bottom + 0.4
    figure, axes, start = Figure(figsize=(total_width, total_height)), [], left
    for width in widths:
        box = (start / total_width, bottom / total_height, width / total_width, height / total_height)
        axes.append(figure.add_axes(box))
        start += width + left
    return figure, axes


def draw_cells(figure: Figure, axes: Axes, change: np.ndarray, sign: int = 1, format: FuncFormatter = PERCENT) -> None:
    """Cells coloured by their change from the baseline, and a colour bar in the margin at the right.

    sign: -1 where more is better.
    """
    largest = max(np.nanmax(np.abs(change)), 1e-9)
    colors = BETTER_TO_WORSE if sign == 1 else BETTER_TO_WORSE.reversed()
    image = axes.imshow(change, cmap=colors, norm=TwoSlopeNorm(0, -largest, largest), aspect="auto")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    inch = 1 / (axes.get_position().width * figure.get_figwidth())
    bar_axes = axes.inset_axes((1 + 0.15 * inch, 0, 0.2 * inch, 1))
    bar = figure.colorbar(image, cax=bar_axes, format=format, ticks=MaxNLocator(5))
    bar.set_label("against the baseline")
    bar.outline.set_visible(False)


def draw_legend(figure: Figure, axes: Axes) -> None:
    """One legend below the axes, with each label of `axes` once."""
    handles = {text: handle for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    columns = _legend_columns(figure.get_figwidth(), list(handles))
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="lower center",
        bbox_to_anchor=(0.5, 0.0),
        ncols=columns,
        fontsize=9,
        handlelength=2.8,
    )


def figure_label(variant: Variant, comparison: Comparison) -> str:
    """The variant's label, shortened for a figure."""
    label = shorten(variant.label)
    return f"{label} (baseline)" if variant is comparison.baseline else label


def baseline_in_title(comparison: Comparison) -> str:
    """The baseline's label, short enough for the title of one chart of several in a row."""
    return shorten(comparison.baseline.label, LONGEST_IN_TITLE)


def shorten(text: str, longest: int = LONGEST_LABEL) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def label_width(labels: Sequence[str]) -> float:
    """The width of the longest label."""
    return CHARACTER_WIDTH * max(map(len, labels), default=0)


def _legend_columns(width: float, labels: Sequence[str]) -> int:
    return max(1, int(width / (label_width(labels) + 0.6)))
