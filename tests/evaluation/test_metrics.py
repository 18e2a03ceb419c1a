import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2i.config import ConfigError
from t2i.evaluation.battery import summary
from t2i.evaluation.metrics import Metric, all_metrics, bin_metrics, snr_bins


@given(st.integers(1, 40), st.integers(0, 100))
def test_the_values_are_those_that_a_run_logs(num_timesteps, seed):
    errors = np.random.default_rng(seed).lognormal(0, 1, (5, num_timesteps))
    logged = summary(errors, snr=np.ones(num_timesteps), to_v=np.ones(num_timesteps))
    for weights in ("", "ema/"):
        for metric in all_metrics(weights, num_timesteps):
            assert metric.value(errors) == pytest.approx(logged[metric.name.removeprefix(f"val/{weights}")])


@given(st.integers(1, 200))
def test_the_bins_hold_every_timestep_once_the_noisiest_first(num_timesteps):
    assert np.concatenate(snr_bins(num_timesteps)).tolist() == list(range(num_timesteps))[::-1]


def test_the_twin_is_of_the_other_weights():
    assert Metric.named("val/loss").twin.name == "val/ema/loss"
    for metric in bin_metrics("ema/", 16):
        assert metric.twin.twin == metric
        assert metric.twin.prefix == ""


@pytest.mark.parametrize("name", ["train/loss", "val/v_mse", "val/snr_bin_8/eps", "val/lossy", "loss"])
def test_what_is_not_kept_for_every_image_is_refused(name):
    with pytest.raises(ConfigError, match=f"--metric {name} can't be compared image by image; choose val/loss"):
        Metric.named(name)
