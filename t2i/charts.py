"""The look of all figures, and axes of a given size: sizes are in inches, so that nothing has to be measured."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from t2i.comparison import Comparison, Setting
from t2i.settings import as_text

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
