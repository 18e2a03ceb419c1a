import re

import numpy as np
import pytest
from helpers import synthetic
from helpers.synthetic import TIMESTEPS, write_run

from t2i.comparison.grouping import compare
from t2i.comparison.results import read_results
from t2i.comparison.significance import Difference
from t2i.comparison.verdicts import Verdict
from t2i.comparison.wording import number, sentences, verdict_word, word_notes
from t2i.evaluation.metrics import Metric, bin_metrics

LOSS = Metric.named("val/loss")
NOISY = (TIMESTEPS > 500).astype(float)


@pytest.fixture
def comparison(tmp_path):
    """Compare variants of snr_gamma, given by how much better each is, with `seeds` runs each."""

    def comparison(better: dict[int, float | np.ndarray], seeds: int = 3, **more):
        for gamma, by in better.items():
            for seed in range(seeds):
                folder = tmp_path / f"{gamma}-{seed}"
                write_run(folder, f"loss.snr_gamma={gamma}", f"seed={seed}", better=by, **more)
        return compare(read_results([tmp_path]))

    return comparison


def test_a_difference_is_found_with_its_size_and_its_sign(comparison):
    compared = comparison({1: 0.0, 5: 0.035, 20: -0.035}, seeds=3)
    better, worse = compared.verdicts(LOSS)
    assert (better.variant.label, better.outcome) == ("snr_gamma=5", "better")
    assert (worse.variant.label, worse.outcome) == ("snr_gamma=20", "worse")
    assert better.total.estimate == pytest.approx(-0.05, abs=0.01)  # 0.665 of what it began with, against 0.7
    assert better.total.low < better.total.estimate < better.total.high < 0 < worse.total.low
    for verdict in (better, worse):
        assert verdict.p >= verdict.total.p
        values = [variant.mean(LOSS) for variant in (verdict.variant, compared.baseline)]
        assert verdict.total.estimate == pytest.approx(values[0] / values[1] - 1, rel=0.01)


def test_sentences_say_how_much_and_what_they_cover(comparison):
    spoken = sentences(comparison({1: 0.0, 5: 0.035, 20: 0.0}), LOSS)
    (better, said), (same, said_not), (_, scope) = spoken
    assert (better, same) == ("better", "same")
    sizes = re.match(r"snr_gamma=5 is better than snr_gamma=1 by (\d\.\d) % \[(\d\.\d), (\d\.\d)\]", said)
    middle, low, high = map(float, sizes.groups())
    assert 0 < low < middle < high
    assert said_not.startswith("snr_gamma=20: no difference larger than the noise, ")
    assert scope == "3 seeds: the intervals cover the variants, over other seeds and images."


def test_one_seed_covers_the_trained_models_only(comparison):
    *_, (kind, scope) = sentences(comparison({1: 0.0, 5: 0.1}, seeds=1), LOSS)
    assert kind == "scope"
    assert scope.startswith("One seed: the intervals cover these trained models only")
    assert "another seed could reverse a result" in scope


def test_a_variant_with_one_seed_is_marked_among_others_with_more(comparison, tmp_path):
    write_run(tmp_path / "7-0", "loss.snr_gamma=7", "seed=0", better=0.2)
    *spoken, (_, scope) = sentences(comparison({1: 0.0, 5: 0.1}), LOSS)
    assert [text for _, text in spoken if "with one seed" in text] == [spoken[0][1]]
    assert scope.endswith("for snr_gamma=7, with one seed, they cover the trained models only.")


def test_a_trade_between_noise_and_detail_shows_in_the_bins(comparison):
    compared = comparison({1: 0.0, 5: 0.1 * NOISY - 0.1 * (1 - NOISY)}, seeds=3)
    (verdict,) = compared.verdicts(LOSS)
    assert abs(verdict.total.estimate) < 0.03
    assert verdict.bin_outcomes == ["better"] * 4 + ["worse"] * 4
    (_, text), _ = sentences(compared, LOSS)
    assert text.endswith("better in SNR bins 0–3 and worse in SNR bins 4–7.")
    assert "SNR bin" not in sentences(compared, bin_metrics("", 16)[0])[0][1]


def test_few_held_out_images_are_said(comparison, monkeypatch):
    monkeypatch.setattr(synthetic, "NUM_IMAGES", 3)
    (_, said), (_, better), _ = sentences(comparison({1: 0.0, 5: 0.0, 20: 0.3}, seeds=1), LOSS)
    texts = (said, better)
    assert all(", on only 3 held-out images" in text for text in texts)
    assert any("no difference larger than the noise" in text for text in texts)


def test_enough_held_out_images_are_not_mentioned(comparison):
    assert not any("on only" in text for _, text in sentences(comparison({1: 0.0, 5: 0.1}), LOSS))


@pytest.mark.parametrize(
    ("p", "adjusted", "note"),
    [
        (0.3, 0.9, "within noise: p ≥ 0.05 even by itself."),
        (0.02, 0.06, "not proven: p < 0.05 by itself, but not among 2 comparisons."),
        (0.01, 0.02, ""),
    ],
)
def test_the_words_that_claim_no_difference_are_explained(p, adjusted, note):
    verdict = Verdict(None, Difference(-0.01, -0.02, 0.0, p, 2), adjusted, [], [], 2)
    assert word_notes([verdict, Verdict(None, Difference(-0.5, -0.6, -0.4, 0.001, 2), 0.002, [], [], 2)]) == note


def test_many_comparisons_raise_the_bar(comparison):
    """What would be a difference alone is none among many: p is adjusted for their number."""
    compared = comparison(dict.fromkeys(range(1, 12), 0.0), seeds=2)
    assert [verdict.outcome for verdict in compared.verdicts(LOSS)] == ["same"] * 10
    for verdict in compared.verdicts(LOSS):
        assert verdict.p >= verdict.total.p
        assert verdict_word(verdict) == ("not proven" if verdict.total.p < 0.05 else "within noise")


def test_each_metric_is_compared_by_its_own_errors(comparison):
    compared = comparison({1: 0.0, 5: 0.2 * NOISY}, seeds=2)
    estimates = {metric.name: compared.verdicts(metric)[0].total.estimate for metric in compared.metrics}
    assert len(estimates) == 20
    assert estimates["val/snr_bin_0/eps"] == pytest.approx(-0.2 / 0.7, abs=0.02)
    assert estimates["val/snr_bin_7/eps"] == pytest.approx(0, abs=0.02)
    for metric in compared.metrics:
        ours, theirs = (
            variant.values(lambda run, metric=metric: run.value(metric)).mean() for variant in compared.variants[::-1]
        )
        assert estimates[metric.name] == pytest.approx(ours / theirs - 1, abs=1e-3)
        assert estimates[metric.name] == pytest.approx(estimates[metric.twin.name])  # averaged weights: 0.98 of both


def test_averaged_weights_are_compared_only_if_all_runs_have_them(comparison, tmp_path):
    write_run(tmp_path / "raw", "loss.snr_gamma=7", averaged=False)
    compared = comparison({1: 0.0, 5: 0.1}, seeds=1)
    assert {metric.prefix for metric in compared.metrics} == {""}
    assert compared.warnings == ["val/ema/... is not compared: no averaged weights in raw."]


def test_one_variant_has_nothing_to_be_compared_with(comparison):
    compared = comparison({1: 0.0})
    assert compared.verdicts(LOSS) == []
    assert sentences(compared, LOSS) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.034567, "0.03457"), (1.0, "1.000"), (123456.0, "123456"), (0.0, "0.000"), (float("nan"), "–"), (0.1, "0.1000")],
)
def test_numbers_have_four_significant_digits(value, text):
    assert number(value) == text
