import pytest
from helpers.synthetic import write_run
from hypothesis import given
from hypothesis import strategies as st

from t2i.comparison.factors import as_text, find_factors
from t2i.comparison.results import read_results
from t2i.config import ConfigError


@pytest.fixture
def factors(tmp_path):
    """The factors of runs with these overrides, and the runs' labels."""

    def factors(*runs: str, by: list[str] | None = None, **info):
        for i, overrides in enumerate(runs):
            write_run(tmp_path / str(i), *overrides.split(), **info)
        results = read_results([tmp_path])
        chosen = find_factors(results, by)
        return chosen, [chosen.label(result) for result in results]

    return factors


def test_the_choice_of_a_group_stands_for_what_follows_from_it(factors):
    chosen, labels = factors("loss=mse", "loss=minsnr")
    assert chosen.by == ("loss",)
    assert set(chosen.implied) == {"loss._target_", "loss.snr_gamma"}
    assert labels == ["mse", "minsnr"]


def test_a_value_that_does_not_follow_is_shown_next_to_the_group(factors):
    chosen, labels = factors("loss=mse", "loss=minsnr loss.snr_gamma=1", "loss=minsnr loss.snr_gamma=5")
    assert chosen.by == ("loss", "loss.snr_gamma")
    assert labels == ["mse", "minsnr snr_gamma=1", "minsnr snr_gamma=5"]


def test_what_was_typed_is_always_shown_so_that_no_confound_hides(factors):
    chosen, labels = factors("loss.snr_gamma=1 optimizer.lr=1e-3", "loss.snr_gamma=5 optimizer.lr=3e-4")
    assert chosen.by == ("loss.snr_gamma", "optimizer.lr")
    assert labels == ["snr_gamma=1 lr=1e-3", "snr_gamma=5 lr=3e-4"]


def test_what_differs_without_being_typed_is_found_too(factors, tmp_path):
    write_run(tmp_path / "edited", "steps=300", overrides=[])
    chosen, labels = factors("seed=0")
    assert chosen.by == ("steps",)
    assert set(labels) == {"steps=200", "steps=300"}


def test_a_key_of_another_version_is_no_factor_but_is_named(factors, tmp_path):
    write_run(
        tmp_path / "later", "loss=minsnr", "seed=1", "adapter._target_=t2i.models.lora.NoAdapter", overrides=["seed=1"]
    )
    chosen, labels = factors("loss=minsnr seed=0", "loss=minsnr seed=2")
    assert (chosen.by, chosen.implied, chosen.partial) == ((), (), ("adapter._target_",))
    assert labels == ["all runs"] * 3


def test_seeds_and_keys_that_change_nothing_are_no_factors(factors):
    chosen, labels = factors("seed=0 num_workers=0 sample_every=0", "seed=1 num_workers=4 sample_every=50")
    assert chosen.by == chosen.paired == chosen.implied == ()
    assert labels == ["all runs", "all runs"]


def test_a_number_is_the_same_however_it_is_written(factors):
    assert factors("loss.snr_gamma=5", "loss.snr_gamma=5.0")[0].by == ()


def test_keys_that_end_alike_are_written_in_full(factors):
    _, labels = factors("optimizer.lr=1e-3 ema.lr=1", "optimizer.lr=1e-4 ema.lr=2")
    assert labels == ["optimizer.lr=1e-3 ema.lr=1", "optimizer.lr=1e-4 ema.lr=2"]


def test_what_else_differs_under_given_keys_pairs_the_runs(factors):
    runs = [f"loss.snr_gamma={gamma} optimizer.lr={lr}" for gamma in (1, 5) for lr in (1e-3, 1e-4)]
    chosen, labels = factors(*runs, by=["snr_gamma"])
    assert (chosen.by, chosen.paired) == (("loss.snr_gamma",), ("optimizer.lr",))
    assert labels == ["snr_gamma=1", "snr_gamma=1", "snr_gamma=5", "snr_gamma=5"]


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("snr_gama", r"--by snr_gama is in no run's configuration; the runs differ in optimizer.lr"),
        ("_target_", r"--by _target_ is ambiguous: loss._target_, optimizer._target_; the runs differ in"),
    ],
)
def test_an_unknown_key_is_refused_with_those_there_are(by, message, factors):
    with pytest.raises(ConfigError, match=message):
        factors("optimizer.lr=1e-3", "optimizer.lr=1e-4", by=[by])


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_can_be_typed_back(value):
    assert float(as_text(value)) == pytest.approx(value, rel=1e-11)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3e-4, "3e-4"),
        (1e-5, "1e-5"),
        (0.1, "0.1"),
        (5.0, "5"),
        (5, "5"),
        (None, "null"),
        (True, "true"),
        ("a\x1b", "a�"),
    ],
)
def test_values_read_as_they_are_typed(value, text):
    assert as_text(value) == text
