import io

import matplotlib
import numpy as np
import pytest
from helpers.synthetic import write_run

from t2i.comparison import figures
from t2i.comparison.charts import BETTER, SAME, STYLE, WORSE
from t2i.comparison.curves import curves
from t2i.comparison.grouping import compare
from t2i.comparison.results import read_results
from t2i.evaluation.metrics import Metric

LOSS = Metric.named("val/loss")


@pytest.fixture
def comparison(tmp_path):
    def comparison(*runs: str, better: dict[str, float] | None = None):
        for i, overrides in enumerate(runs):
            write_run(tmp_path / str(i), *overrides.split(), better=(better or {}).get(overrides, 0.0))
        return compare(read_results([tmp_path]))

    return comparison


def words(figure) -> list[str]:
    """The texts of a figure, which must be drawable."""
    with matplotlib.rc_context(STYLE):
        figure.savefig(io.BytesIO(), format="png")
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text)]


def test_two_keys_make_a_heat_map(comparison):
    runs = [f"loss.snr_gamma={gamma} optimizer.lr={lr}" for gamma in (1, 5, 20) for lr in ("1e-3", "1e-4")]
    compared = comparison(*runs, better={runs[-1]: 0.1})
    grid = figures.find_grid(compared)
    assert (grid.rows, grid.columns) == (["snr_gamma=1", "snr_gamma=5", "snr_gamma=20"], ["1e-4", "1e-3"])
    figure = figures.overview(compared, LOSS)
    (image,) = figure.axes[0].get_images()
    assert image.get_array().shape == (3, 2)
    assert image.get_array()[0, 0] == 0  # the baseline
    assert image.get_array()[2, 0] == pytest.approx(-0.1 / 0.7, abs=0.01)
    assert {"snr_gamma=20", "1e-4", "optimizer.lr"} <= set(words(figure))


def test_cells_within_the_noise_have_no_colour(comparison):
    runs = [f"loss.snr_gamma={gamma} optimizer.lr={lr}" for gamma in (1, 5) for lr in (1, 2)]
    compared = comparison(*runs, better={runs[3]: 0.1})
    (image,) = figures.overview(compared, LOSS).axes[0].get_images()
    outcomes = [verdict.outcome for verdict in compared.verdicts(LOSS)]
    assert outcomes == ["better", "same", "same"]
    assert np.count_nonzero(image.get_array()) == 1


@pytest.mark.parametrize("steps", [(0, 1, 2, 3), (0, 3)])
def test_there_are_no_half_steps_on_an_axis(tmp_path, steps):
    for gamma in (1, 5):
        write_run(tmp_path / str(gamma), f"loss.snr_gamma={gamma}", "steps=3", validated=steps)
    figure = curves(compare(read_results([tmp_path])), LOSS)
    words(figure)  # which places the ticks
    of_steps = [axes for axes in figure.axes if axes.get_xlabel() == "step"]
    assert len(of_steps) == 2
    for axes in of_steps:
        assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_a_loss_without_the_key_has_its_own_row(comparison):
    runs = [
        f"{loss} optimizer.lr={lr}"
        for loss in ("loss=mse", "loss=minsnr", "loss=minsnr loss.snr_gamma=1")
        for lr in (1, 2)
    ]
    assert figures.find_grid(comparison(*runs)).rows == ["minsnr snr_gamma=1", "minsnr snr_gamma=5", "mse"]


def test_variants_that_fill_no_rectangle_are_shown_in_rows(comparison):
    runs = [f"loss.snr_gamma={i} optimizer.lr={i}" for i in (1, 2, 3, 4)]
    compared = comparison(*runs, better={runs[3]: 0.1})
    assert figures.find_grid(compared) is None
    labels = [label.get_text() for label in figures.overview(compared, LOSS).axes[0].get_yticklabels()]
    assert labels[-1] == "snr_gamma=4 lr=4"
    assert "snr_gamma=1 lr=1 (baseline)" in labels


def test_one_numeric_key_is_an_axis(comparison):
    figure = figures.overview(comparison("loss.snr_gamma=1", "loss.snr_gamma=5", "loss.snr_gamma=20"), LOSS)
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_xlabel()) == ("log", "loss.snr_gamma")
    assert {"1", "5", "20"} <= set(words(figure))


def test_differences_are_coloured_by_their_outcome_best_on_top(comparison):
    runs = ["loss=mse", "loss.snr_gamma=1", "loss.snr_gamma=2", "loss.snr_gamma=3"]
    figure = figures.differences(comparison(*runs, better={runs[1]: 0.1, runs[3]: -0.1}), LOSS)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"minsnr snr_gamma={i}" for i in (3, 2, 1)]
    lines, points = axes.collections
    assert np.allclose(lines.get_colors()[:, :3], [matplotlib.colors.to_rgb(color) for color in (WORSE, SAME, BETTER)])
    x = points.get_offsets()[:, 0]
    assert x[0] > x[1] > x[2]
    for (low, high), middle in zip([path.vertices[:, 0] for path in lines.get_paths()], x, strict=True):
        assert low < middle < high


def test_a_list_can_be_compared_like_any_value(comparison):
    runs = [f"optimizer.betas=[0.9,{beta}] optimizer.lr={lr}" for beta in (0.95, 0.999) for lr in (1, 2)]
    assert figures.find_grid(comparison(*runs)).rows == ["betas=[0.9, 0.95]", "betas=[0.9, 0.999]"]


@pytest.mark.parametrize("hostile", ["$x^{", "<script>alert(1)</script>", "_hidden", "long " * 60, "\\frac"])
def test_any_name_can_be_drawn(comparison, tmp_path, hostile):
    write_run(tmp_path / "hostile", "loss=mse", choices={"loss": hostile}, overrides=["loss=x"])
    compared = comparison("loss=mse", "loss=minsnr")
    for figure in (figures.overview(compared, LOSS), figures.differences(compared, LOSS)):
        assert any(hostile.strip()[:20] in text for text in words(figure))
        assert max(figure.get_size_inches()) < 20
