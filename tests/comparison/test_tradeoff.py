"""Gain against forgetting, and the gap between held-out and training images, of runs whose truth is known."""

import json
import re

import matplotlib
import numpy as np
import pytest
from helpers.synthetic import add_batteries, write_run

from t2i.comparison.charts import STYLE
from t2i.comparison.curves import curves
from t2i.comparison.figures import overview
from t2i.comparison.grouping import compare
from t2i.comparison.html_report import write_page
from t2i.comparison.results import read_results
from t2i.comparison.significance import difference, gap_difference
from t2i.comparison.tradeoff import judgements, points, tradeoff
from t2i.comparison.wording import sentences
from t2i.evaluation.metrics import Metric

GAP, REF, TRAIN = map(Metric.named, ("val/gap", "ref/loss", "val/train_loss"))


@pytest.fixture
def sweep(tmp_path):
    """gamma -> (better on held-out images, better on training images, forgotten): 1 is beaten by 5 in both."""
    truth = {1: (0.0, 0.0, 0.2), 5: (0.1, 0.3, 0.1), 20: (0.2, 0.1, 0.4)}
    for gamma, (better, on_training, forgotten) in truth.items():
        for seed in (0, 1, 2):
            name = f"loss.snr_gamma={gamma}", f"seed={seed}"
            add_batteries(write_run(tmp_path / "_".join(name), *name, better=better), on_training, forgotten)
    return tmp_path


def test_the_further_metrics_are_compared_like_the_headline(sweep):
    comparison = compare(read_results([sweep]))
    assert {"val/train_loss", "val/ema/train_loss", "ref/loss", "ref/ema/loss", "val/gap", "val/ema/gap"} <= {
        metric.name for metric in comparison.metrics
    }
    _, five, twenty = comparison.variants
    on_reference = {verdict.variant: verdict for verdict in comparison.verdicts(REF)}
    assert on_reference[five].outcome == "better"
    assert on_reference[twenty].total.estimate == pytest.approx(1.4 / 1.2 - 1, abs=0.01)
    gap = comparison.difference(five, GAP)
    assert gap.estimate == pytest.approx((0.6 / 0.7) / (0.4 / 0.7) - 1, abs=0.02)
    assert gap.low < gap.estimate < gap.high
    words = dict(
        zip((verdict.variant for verdict in comparison.verdicts(GAP)), sentences(comparison, GAP), strict=False)
    )
    assert words[five][1].startswith("snr_gamma=5 has a larger gap than snr_gamma=1 by ")
    assert any("fits its training images better than" in text for _, text in sentences(comparison, TRAIN))
    assert any("better on the reference images than" in text for _, text in sentences(comparison, REF))


def test_the_front_is_what_no_other_beats_in_both(sweep):
    comparison = compare(read_results([sweep]))
    found = points(comparison, averaged=False)
    one, five, _ = found
    assert five.held_out.estimate == pytest.approx(-0.4, abs=0.01)
    assert five.reference.estimate == pytest.approx(0.1, abs=0.01)
    assert [one.is_behind(other) for other in found] == [False, True, False]
    assert judgements(comparison, found, averaged=False) == [
        "No other setting measured better than snr_gamma=5 and snr_gamma=20 in both gain and forgetting.",
        "Beaten in both by more than the noise: snr_gamma=1 (by snr_gamma=5).",
    ]


def test_what_the_noise_may_explain_is_not_claimed(tmp_path):
    for gamma in (1, 5):
        name = f"loss.snr_gamma={gamma}", "seed=0"
        add_batteries(write_run(tmp_path / "_".join(name), *name))
    comparison = compare(read_results([tmp_path]))
    text = " ".join(judgements(comparison, points(comparison, averaged=False), averaged=False))
    assert "Beaten in both by more than the noise" not in text


def test_of_a_single_variant_only_its_changes_are_said(tmp_path):
    add_batteries(write_run(tmp_path / "run", "loss.snr_gamma=1", "seed=0", better=0.1), 0.1, 0.2)
    comparison = compare(read_results([tmp_path]))
    (said,) = judgements(comparison, points(comparison, averaged=False), averaged=False)
    assert re.fullmatch(r"Since step 0: val/loss −40\.\d % \[.*\] and ref/loss \+20\.\d % \[.*\]\.", said)


def test_the_changes_are_paired_with_the_same_runs_at_step_0(sweep):
    comparison = compare(read_results([sweep]))
    point = points(comparison, averaged=True)[1]
    runs = point.variant.runs.values()
    end = np.stack([run.errors["ref/ema/"] for run in runs])
    start = np.stack([run.errors_at(0)["ref/ema/"] for run in runs])
    assert point.reference == difference(end, start)


@pytest.mark.slow
def test_the_page_draws_it_and_says_it_in_words(sweep, tmp_path):
    comparison, out = compare(read_results([sweep])), tmp_path / "out"
    out.mkdir()
    write_page(comparison, REF, out)
    page = (out / "comparison.html").read_text()
    assert "Gained and forgotten" in page
    assert "No other setting measured better than snr_gamma=5 and snr_gamma=20" in page
    assert (out / "tradeoff.png").is_file()


def test_figures_of_gaps_and_of_the_front(sweep):
    comparison = compare(read_results([sweep]))
    with matplotlib.rc_context(STYLE):
        axes = tradeoff(comparison, points(comparison, averaged=False)).axes[0]
        overview(comparison, GAP)
        curves(comparison, GAP)
    ring = next(line for line in axes.get_lines() if line.get_label() == "no other is better in both")
    assert len(ring.get_xdata()) == 2


def test_other_reference_images_are_not_compared(sweep):
    file = next(sweep.glob("*gamma=5*")) / "run.json"
    info = json.loads(file.read_text())
    file.write_text(json.dumps(info | {"reference_battery": {"hash": "other"}}))
    comparison = compare(read_results([sweep]))
    assert REF not in comparison.metrics
    assert TRAIN in comparison.metrics
    assert points(comparison, averaged=False) == []


def test_runs_without_these_batteries_have_no_such_metrics(tmp_path):
    write_run(tmp_path / "run", "loss.snr_gamma=1")
    comparison = compare(read_results([tmp_path]))
    assert not {"val/gap", "ref/loss"} & {metric.name for metric in comparison.metrics}
    assert points(comparison, averaged=False) == []


def gaps(rng, seeds, images, effect=0.1):
    """Held-out and training errors of two variants; the first variant's gap is larger by `effect`."""

    def table(number):
        image, run = rng.standard_normal((number, 1)), rng.standard_normal((2, seeds, number, 1))
        return np.exp(0.5 * image + 0.05 * run + 0.03 * rng.standard_normal((2, 1, number, 1)))

    on_seed = 0.02 * rng.standard_normal((2, seeds, 1, 1))
    held_out, train = table(images) * np.exp(on_seed), table(images) * np.exp(-on_seed)
    held_out[0] *= np.exp(effect)
    return held_out, train


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "images"), [(3, 32), (5, 16)])
def test_the_interval_of_a_difference_of_gaps_holds_the_truth(seeds, images):
    rng, hits = np.random.default_rng(0), 0
    for _ in range(1000):
        held_out, train = gaps(rng, seeds, images)
        found = gap_difference((*held_out, None), (*train, None))
        hits += found.low <= np.expm1(0.1) <= found.high
    assert 0.93 <= hits / 1000 <= 0.975


def test_the_difference_of_gaps_is_that_of_their_logarithms():
    held_out, train = gaps(np.random.default_rng(1), 3, 16)
    found = gap_difference((*held_out, None), (*train, None))
    alone = [np.log1p(difference(*tables).estimate) for tables in (held_out, train)]
    assert found.estimate == pytest.approx(np.expm1(alone[0] - alone[1]), rel=1e-9)
