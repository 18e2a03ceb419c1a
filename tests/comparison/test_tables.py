import csv

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.synthetic import write_run

from t2i.comparison.grouping import compare
from t2i.comparison.results import read_results
from t2i.comparison.tables import bin_names, difference_rows, run_rows, variant_rows, write_results
from t2i.evaluation.metrics import Metric, bin_metrics

LOSS = Metric.named("val/loss")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """Two seeds of three variants, of which the last is the best; and runs that can't be compared."""
    folder = tmp_path_factory.mktemp("sweep")
    for loss, gamma, better in (("mse", None, 0.0), ("minsnr", 1, -0.05), ("minsnr", 5, 0.05)):
        for seed in (0, 1):
            overrides = [f"loss={loss}", *([f"loss.snr_gamma={gamma}"] if gamma else []), f"seed={seed}"]
            write_run(folder / f"{loss}-{gamma}-{seed}", *overrides, better=better)
    write_run(folder / "x", "loss=mse", "seed=2", state="failed", validated=(0,), error="ValueError: no")
    (folder / "y" / ".hydra").mkdir(parents=True)
    return compare(read_results([folder]))


def texts(rows, column):
    return [row[column].text for row in rows]


def test_variants_are_sorted_by_the_metric_with_their_seeds_pooled(comparison):
    rows = variant_rows(comparison, LOSS)
    assert texts(rows, "variant") == ["minsnr snr_gamma=5", "mse", "minsnr snr_gamma=1"]
    assert [row["variant"].style for row in rows] == ["", "baseline", ""]
    assert texts(rows, "seeds") == ["2", "2", "2"]
    best = comparison.variants[1].values(lambda run: run.value(LOSS))
    assert rows[0]["val/loss"].value == pytest.approx(best.mean())
    mean, spread = map(float, rows[0]["val/loss"].text.split(" ± "))
    assert mean == pytest.approx(best.mean(), rel=1e-3)
    assert spread == pytest.approx(np.std(best, ddof=1), rel=0.5)
    assert rows[0]["since start"].value == pytest.approx(0.65 - 1, abs=0.01)
    assert texts(rows, "hours") == ["2.0"] * 3


def test_a_metric_of_averaged_weights_keeps_both_columns(comparison):
    row = variant_rows(comparison, Metric.named("val/ema/loss"))[0]
    assert row["val/ema/loss"].value == pytest.approx(0.98 * row["val/loss"].value)
    for name, metric in zip(bin_names(comparison, LOSS), bin_metrics("ema/", 16), strict=True):
        assert row[name].value == pytest.approx(
            comparison.variants[1].values(lambda run, m=metric: run.value(m)).mean()
        )


def test_differences_are_sorted_and_shaded_where_they_are_larger_than_the_noise(comparison):
    rows = difference_rows(comparison, LOSS)
    assert texts(rows, "variant") == ["minsnr snr_gamma=5", "minsnr snr_gamma=1"]
    assert rows[0]["difference"].text.startswith("−7.")
    cells = [row[name] for row in rows for name in bin_names(comparison, LOSS)]
    outcomes = {cell.style: [other.shade for other in cells if other.style == cell.style] for cell in cells}
    assert set(outcomes.pop("same")) == {None}
    shades = [shade for each in outcomes.values() for shade in each]
    assert 0 < min(shades) <= max(shades) <= 1


def test_every_run_has_a_row_and_a_reason_if_it_is_not_compared(comparison):
    rows = run_rows(comparison, LOSS)
    assert len(rows) == 8
    assert [(row["run"].text, row["state"].text, row["not compared"].text) for row in rows[-2:]] == [
        ("x", "failed", "ValueError: no"),
        ("y", "never begun", "it never started; see train.log"),
    ]
    assert all(row["not compared"].text == "" for row in rows[:-2])


def test_the_files_hold_every_run_with_its_factors_and_metrics(comparison, tmp_path):
    write_results(comparison, tmp_path)
    table = pq.read_table(tmp_path / "results.parquet").to_pylist()
    with (tmp_path / "results.csv").open() as file:
        assert [row["run"] for row in csv.DictReader(file)] == [row["run"] for row in table]
    assert len(table) == 8
    for row, result in zip(table, comparison.results, strict=True):
        assert row["compared"] == (result not in comparison.left_out)
        assert row["state"] == result.state
        if result.finished:
            assert row["loss"] == result.config_value("loss")
            assert row["loss.snr_gamma"] == result.config_value("loss.snr_gamma")
            assert {key: row[key] for key in result.latest if key != "step"} == pytest.approx(
                {key: value for key, value in result.latest.items() if key != "step"}
            )


def test_a_column_of_mixed_values_is_written_as_text(tmp_path):
    for value in ("auto", 3, "[1,2]", "null"):
        write_run(tmp_path / str(value), f"attention={value}")
    comparison = compare(read_results([tmp_path]))
    write_results(comparison, tmp_path)
    assert set(pq.read_table(tmp_path / "results.parquet")["attention"].to_pylist()) == {"auto", "3", "[1, 2]", None}
