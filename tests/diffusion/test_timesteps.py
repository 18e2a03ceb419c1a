import numpy as np
import pytest
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling
from hypothesis import given
from hypothesis import strategies as st

from t2i.diffusion.shift import Shift
from t2i.diffusion.timesteps import (
    STRATEGIES,
    Biased,
    Continuous,
    LogitNormal,
    Mode,
    Shifted,
    Stratified,
    Uniform,
)


def biased(strategy="later", multiplier=2.0, portion=0.25, begin=0, end=1000):
    return Biased(strategy=strategy, multiplier=multiplier, portion=portion, begin=begin, end=end)


distributions = st.one_of(
    st.just(Uniform()),
    st.builds(LogitNormal, mean=st.floats(-3, 3), std=st.floats(0.05, 5)),
    st.builds(Mode, scale=st.floats(-1, 1.75)),
    st.builds(Shifted, shift=st.floats(0.1, 10)),
    st.builds(biased, st.sampled_from(["earlier", "later", "none"]), st.floats(0.01, 100), st.floats(0, 1)),
    st.builds(lambda begin, length: biased("range", begin=begin, end=begin + length), st.integers(0, 99), st.just(1)),
)


@given(distributions, st.floats(0, 1, exclude_max=True), st.integers(100, 1000))
def test_quantiles_are_timesteps(distribution, u, num_timesteps):
    for drawn in (distribution, Continuous(distribution)):
        assert drawn.quantile(np.array([u, np.nextafter(1, 0)]), num_timesteps).min() >= 0
        assert drawn.quantile(np.array([u, np.nextafter(1, 0)]), num_timesteps).max() < num_timesteps


@given(distributions, st.integers(100, 300))
def test_quantiles_follow_the_probabilities(distribution, num_timesteps):
    """Equally spaced u give each timestep its probability, up to one u at either end."""
    probabilities = distribution.probabilities(num_timesteps)
    assert probabilities.sum() == pytest.approx(1)
    u = (np.arange(20_000) + 0.5) / 20_000
    counts = np.bincount(distribution.quantile(u, num_timesteps), minlength=num_timesteps)
    assert np.abs(counts / 20_000 - probabilities).max() < 2 / 20_000


@given(distributions, st.integers(100, 300))
def test_real_times_follow_the_probabilities(distribution, num_timesteps):
    u = (np.arange(20_000) + 0.5) / 20_000
    times = Continuous(distribution).quantile(u, num_timesteps)
    assert times.dtype == np.float32
    assert (np.diff(times) >= 0).all()
    counts = np.histogram(times.astype(float), np.arange(num_timesteps + 1))[0]
    assert counts.sum() == 20_000
    assert np.abs(counts / 20_000 - distribution.probabilities(num_timesteps)).max() < 3 / 20_000


def test_real_times_do_not_repeat():
    """1,000 timesteps would."""
    u = np.random.default_rng(0).random(50_000)
    for distribution in (Uniform(), LogitNormal(mean=0.0, std=1.0), biased()):
        assert len(set(Continuous(distribution).quantile(u, 1000))) > 49_000


def test_modes_are_those_of_diffusers():
    """The same distribution, from the other end: Diffusers counts its timesteps from the noise."""
    torch.manual_seed(0)
    theirs = compute_density_for_timestep_sampling("mode", 100_000, mode_scale=1.29)
    ours = Mode(scale=1.29).time((np.arange(100_000) + 0.5) / 100_000, 1)
    quantiles = np.linspace(0.02, 0.98, 25)
    assert np.allclose(np.quantile(1 - theirs.numpy(), quantiles), np.quantile(ours, quantiles), atol=0.006)


def test_shifted_times_are_those_of_a_shifted_flow():
    """So shifting logit-normal times by s moves their mean by log s."""
    u = (np.arange(1000) + 0.5) / 1000
    times = torch.from_numpy(Shifted(shift=3.0).time(u, 1))
    assert torch.allclose(times, Shift(factor=3.0)(torch.from_numpy(u)))
    normal = LogitNormal(mean=-0.5, std=0.8)
    moved = LogitNormal(mean=-0.5 + np.log(3), std=0.8)
    assert np.allclose(Shifted(shift=3.0).time(normal.time(u, 1), 1), moved.time(u, 1))


def test_the_logit_of_logit_normal_timesteps_is_normal():
    """The logit of t / T has the given mean and standard deviation; the median is the sigmoid of the mean."""
    distribution, u = LogitNormal(mean=-0.5, std=0.8), (np.arange(100_000) + 0.5) / 100_000
    position = (distribution.quantile(u, 10_000) + 0.5) / 10_000
    logit = np.log(position / (1 - position))
    assert logit.mean() == pytest.approx(-0.5, abs=1e-3)
    assert logit.std() == pytest.approx(0.8, abs=1e-3)
    assert np.median(position) == pytest.approx(1 / (1 + np.exp(0.5)), abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        ({"strategy": "earlier"}, range(0, 250)),
        ({"strategy": "later"}, range(750, 1000)),
        ({"strategy": "later", "portion": 0.0}, range(0)),
        ({"strategy": "range", "begin": 200, "end": 500}, range(200, 500)),
        ({"strategy": "none"}, range(0)),
    ],
)
def test_biased_timesteps_come_multiplier_times_as_often(settings, chosen):
    probabilities = biased(multiplier=3.0, **settings).probabilities(1000)
    relative = probabilities / probabilities.min()
    assert np.allclose(relative, [3.0 if t in chosen else 1.0 for t in range(1000)])


@given(distributions, st.integers(1, 64), st.integers(0, 1000), st.data())
def test_each_example_of_a_step_has_its_own_stratum(distribution, batch_size, step, data):
    stratified = Stratified(distribution=distribution, batch_size=batch_size)
    size = {"min_size": batch_size, "max_size": batch_size}
    own = np.array(data.draw(st.lists(st.floats(0, 1, exclude_max=True), **size)))
    positions = range(step * batch_size, (step + 1) * batch_size)
    u = stratified.spread(own, positions)
    assert (u >= 0).all()
    assert (u < 1).all()
    # Up to rounding, the n-th is in the n-th stratum.
    assert (np.abs(u * batch_size - np.arange(batch_size) - own) < 1e-9).all()
    cut = batch_size // 2
    assert np.array_equal(np.concatenate([stratified.spread(own[s], positions[s]) for s in np.s_[:cut, cut:]]), u)
    assert (stratified.quantile(u, 200) == distribution.quantile(u, 200)).all()
    assert (stratified.probabilities(200) == distribution.probabilities(200)).all()


def test_without_strata_an_example_keeps_its_own_u():
    u = np.array([0.1, 0.9])
    assert Uniform().spread(u, [7, 8]) is u


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mode(scale=2.0), "timesteps.scale=2.0 must be between -1 and 2"),
        (lambda: Shifted(shift=0.0), "timesteps.shift=0.0 must be positive"),
        (lambda: LogitNormal(mean=0.0, std=0.0), "timesteps.std=0.0 must be positive"),
        (lambda: biased("sooner"), f"timesteps.strategy=sooner is not known; choose from {', '.join(STRATEGIES)}"),
        (lambda: biased(multiplier=0.0), "timesteps.multiplier=0.0 must be positive"),
        (lambda: biased(portion=1.5), "timesteps.portion=1.5 must be a fraction of the timesteps"),
        (
            lambda: biased("range", begin=500, end=500),
            "timesteps.begin=500 must be .* below timesteps.end=500",
        ),
        (lambda: biased("range", end=1001).probabilities(1000), "timesteps.end=1001 is beyond the last timestep"),
    ],
)
def test_values_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
