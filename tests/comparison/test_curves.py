from itertools import pairwise

import matplotlib
import pytest
from helpers.synthetic import write_run
from matplotlib.lines import Line2D
from matplotlib.text import Text

from t2i.comparison import curves
from t2i.comparison.charts import STYLE
from t2i.comparison.grouping import compare
from t2i.comparison.results import read_results
from t2i.evaluation.metrics import Metric

LOSS = Metric.named("val/loss")


@pytest.fixture
def folder(tmp_path):
    """Two seeds of mse and minsnr, which ends 10 of 70 % lower; and a run that was interrupted."""
    for seed in (0, 1):
        write_run(tmp_path / f"mse-{seed}", "loss=mse", f"seed={seed}")
        write_run(tmp_path / f"minsnr-{seed}", "loss=minsnr", f"seed={seed}", better=0.07)
    write_run(tmp_path / "x", "loss=minsnr", "seed=2", state="interrupted", validated=(0, 100))
    return tmp_path


def line(axes, label) -> Line2D:
    return next(line for line in axes.get_lines() if line.get_label() == label)


def test_curves_end_at_the_values_and_at_the_difference(folder):
    comparison = compare(read_results([folder]))
    absolute, relative, timed = curves.curves(comparison, LOSS).axes
    (verdict,) = comparison.verdicts(LOSS)
    values = verdict.variant.values(lambda run: run.value(LOSS))
    assert line(absolute, "minsnr").get_ydata()[-1] == pytest.approx(values.mean())
    assert {"mse (baseline)", "minsnr", "not compared"} <= {each.get_label() for each in absolute.get_lines()}
    (mean,) = [each for each in relative.get_lines() if len(each.get_xdata()) == 3]
    assert mean.get_ydata() == pytest.approx([0, mean.get_ydata()[1], verdict.total.estimate], abs=1e-3)
    assert timed.get_lines()[0].get_xdata().tolist() == [0, 1, 2]
    assert timed.get_xlabel() == "hours"


def test_the_titles_of_variants_with_long_names_do_not_meet(tmp_path):
    for loss, scheduler, model in (("mse", "flow_matching", "tiny_flow"), ("minsnr", "epsilon", "tiny")):
        write_run(tmp_path / loss, f"loss={loss}", f"scheduler={scheduler}", f"model={model}")
    with matplotlib.rc_context(STYLE):
        figure = curves.curves(compare(read_results([tmp_path])), LOSS)
        figure.draw_without_rendering()
    shown = [axes.get_title("left") for axes in figure.axes]
    titles = [
        next(text for text in axes.findobj(Text) if text.get_text() == title).get_window_extent()
        for axes, title in zip(figure.axes, shown, strict=True)
    ]
    assert len(titles) == 3
    assert all(shown)
    assert all(left.x1 < right.x0 for left, right in pairwise(titles))


def test_a_run_that_is_not_compared_ends_where_it_ended(folder):
    absolute = curves.curves(compare(read_results([folder])), LOSS).axes[0]
    assert line(absolute, "not compared").get_xdata().tolist() == [0, 100]


def test_without_hours_there_is_no_such_panel(tmp_path):
    for gamma in (1, 5):
        write_run(tmp_path / str(gamma), f"loss.snr_gamma={gamma}", hours=False)
    assert len(curves.curves(compare(read_results([tmp_path])), LOSS).axes) == 2


def test_one_variant_is_not_compared_with_itself(tmp_path):
    write_run(tmp_path / "run")
    assert [axes.get_xlabel() for axes in curves.curves(compare(read_results([tmp_path])), LOSS).axes] == [
        "step",
        "hours",
    ]


def test_thirty_variants_have_thirty_line_styles(tmp_path):
    for gamma in range(1, 7):
        for lr in range(1, 6):
            write_run(tmp_path / f"{gamma}-{lr}", f"loss.snr_gamma={gamma}", f"optimizer.lr={lr}", validated=(0, 200))
    styles = curves.line_styles(compare(read_results([tmp_path])))
    assert len({str(style) for style in styles.values()}) == len(styles) == 30
