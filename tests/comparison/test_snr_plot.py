import numpy as np
import pytest
from helpers.synthetic import TIMESTEPS, log_snr, write_run

from t2i.comparison import snr_plot
from t2i.comparison.grouping import compare
from t2i.comparison.results import read_results
from t2i.evaluation.metrics import Metric

LOSS = Metric.named("val/loss")


def test_the_error_against_snr_is_that_of_every_timestep(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"mse-{seed}", "loss=mse", f"seed={seed}")
        write_run(tmp_path / f"minsnr-{seed}", "loss=minsnr", f"seed={seed}", better=0.07)
    comparison = compare(read_results([tmp_path]))
    (axes,) = snr_plot.snr(comparison, LOSS).axes
    assert axes.get_xscale() == "log"
    drawn = next(line for line in axes.get_lines() if line.get_label() == "minsnr")
    assert np.log(drawn.get_xdata()) == pytest.approx(log_snr(TIMESTEPS))
    ratios = [
        comparison.variants[0].runs[pair].errors[""].mean(0) / comparison.baseline.runs[pair].errors[""].mean(0)
        for pair in [(0,), (1,)]
    ]
    assert drawn.get_ydata() == pytest.approx(np.mean(ratios, axis=0) - 1)


def test_a_battery_of_timesteps_is_drawn_against_its_ratios(tmp_path):
    battery = {"hash": "one", "timesteps": list(range(16)), "snr": [1.0 / (t + 1) for t in range(16)]}
    for gamma in (1, 5):
        write_run(tmp_path / str(gamma), f"loss.snr_gamma={gamma}", battery=battery)
    (axes,) = snr_plot.snr(compare(read_results([tmp_path])), LOSS).axes
    assert axes.get_lines()[-1].get_xdata().tolist() == battery["snr"]


def test_without_the_ratios_the_axis_is_the_timestep(tmp_path):
    for gamma in (1, 5):
        write_run(
            tmp_path / str(gamma), f"loss.snr_gamma={gamma}", battery={"hash": "one", "timesteps": list(range(16))}
        )
    (axes,) = snr_plot.snr(compare(read_results([tmp_path])), LOSS).axes
    assert axes.get_xlabel().startswith("timestep")
    assert axes.xaxis_inverted()


def test_many_variants_are_rows_from_noise_to_clean(tmp_path):
    for gamma in range(1, 11):
        better = 0.1 * (TIMESTEPS > 500) * (gamma == 2)
        write_run(tmp_path / str(gamma), f"loss.snr_gamma={gamma}", better=better, validated=(200,))
    axes = snr_plot.snr(compare(read_results([tmp_path])), LOSS).axes[0]
    (image,) = axes.get_images()
    assert image.get_array().shape == (10, len(TIMESTEPS))
    assert np.allclose(image.get_array()[0], 0)  # the baseline
    assert np.allclose(image.get_array()[1], [-0.1 / 0.7] * 8 + [0] * 8, atol=0.03)
    assert axes.get_yticklabels()[1].get_text() == "snr_gamma=2"
