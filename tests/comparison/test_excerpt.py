"""Large comparisons: what is shown is a part, and what is said of it is said of the whole."""

import pytest
from helpers.synthetic import TIMESTEPS, write_run

from t2i.comparison import excerpt
from t2i.comparison.figures import overview
from t2i.comparison.grouping import compare
from t2i.comparison.results import read_results
from t2i.comparison.wording import sentences
from t2i.evaluation.metrics import Metric

METRIC = Metric.named("val/loss")
RATES = 6


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Six learning rates, the higher the better, and a run that failed."""
    folder = tmp_path_factory.mktemp("sweep")
    for i in range(RATES):
        write_run(folder / f"{i}", f"optimizer.lr={i + 1}e-5", better=0.02 * i, timesteps=TIMESTEPS[::4])
    failed = {"state": "failed", "validated": (0,)}
    write_run(folder / "failed", "optimizer.lr=1e-5", "seed=1", timesteps=TIMESTEPS[::4], **failed)
    return compare(read_results([folder]))


@pytest.fixture
def shown(whole, monkeypatch):
    monkeypatch.setattr(excerpt, "MOST_VARIANTS", 4)
    monkeypatch.setattr(excerpt, "SHOWN", 3)
    return excerpt.excerpt(whole, METRIC)


def test_a_small_comparison_is_shown_completely(whole):
    assert excerpt.excerpt(whole, METRIC) is whole
    assert excerpt.shown_metrics(whole, METRIC) == whole.metrics
    assert excerpt.note(whole, METRIC) == ""


def test_the_best_variants_are_shown_and_the_baseline(shown):
    assert [variant.label for variant in shown.variants] == ["lr=1e-5", "lr=5e-5", "lr=6e-5"]
    assert "the 3 variants of 6 that are best by val/loss" in excerpt.note(shown, METRIC)
    assert len(excerpt.sampled_runs(shown)) == 3


def test_verdicts_are_those_of_the_whole(whole, shown):
    everything = {verdict.variant: verdict for verdict in whole.verdicts(METRIC)}
    assert shown.verdicts(METRIC) == [everything[verdict.variant] for verdict in shown.verdicts(METRIC)]
    assert shown.num_tests(METRIC) == RATES - 1
    assert shown.metrics == whole.metrics
    of_whole = [sentence for _, sentence in sentences(whole, METRIC)]
    assert all(sentence in of_whole for _, sentence in sentences(shown, METRIC))


def test_figures_and_metrics_are_few(shown, whole):
    assert len(overview(shown, METRIC).axes[0].get_yticks()) <= 12
    assert {metric.snr_bin for metric in excerpt.shown_metrics(whole, METRIC)} == {None}


def test_long_lists_say_how_many_more_there_are():
    assert excerpt.several(["a", "b"]) == "a, b"
    assert excerpt.several([str(i) for i in range(1000)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 992 more"
