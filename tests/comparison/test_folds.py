"""Runs that hold out different folds of one data set are pooled as one estimate."""

import numpy as np
import pytest
from helpers.synthetic import write_run

from t2i.comparison.folds import complete, values
from t2i.comparison.grouping import compare
from t2i.comparison.results import read_results
from t2i.comparison.significance import difference
from t2i.comparison.wording import sentences
from t2i.config import ConfigError
from t2i.evaluation.metrics import Metric

EFFECT = np.log(0.95)  # the first variant's errors are 5 % lower
LOSS = Metric.named("val/loss")
FACTS = {"items": 24, "seed": 0, "autoencoder": "b", "log_snr": [1.0, -1.0]}


def fold(number, of=3, images="all"):
    """What run.json says of the battery of a fold."""
    folds = {"number": of, "images": images}
    return FACTS | {"hash": f"fold {number} {images}", "images": f"{number}", "folds": folds, "fold": number}


def write(folder, gamma, seed, number, better=0.0, **battery):
    overrides = f"loss.snr_gamma={gamma}", f"seed={seed}", "validation.folds=3", f"validation.fold={number}"
    return write_run(folder / "_".join(overrides), *overrides, better=better, battery=fold(number) | battery)


@pytest.fixture
def sweep(tmp_path):
    for gamma, better in ((1, 0.0), (5, 0.1)):
        for seed in (0, 1):
            for number in range(3):
                write(tmp_path, gamma, seed, number, better)
    return tmp_path


def test_the_folds_of_a_seed_are_one_estimate(sweep):
    comparison = compare(read_results([sweep]))
    one, five = comparison.variants
    assert [variant.label for variant in comparison.variants] == ["snr_gamma=1", "snr_gamma=5"]
    assert list(one.runs) == [(seed, f"fold {number}") for seed in (0, 1) for number in range(3)]
    together = np.concatenate([five.runs[1, f"fold {number}"].errors[""] for number in range(3)])
    assert values(five.runs, LOSS)[1] == LOSS.value(together)
    (verdict,) = comparison.verdicts(LOSS)
    assert (verdict.variant, verdict.outcome, verdict.seeds) == (five, "better", 2)
    assert "3 folds: each image" in sentences(comparison, LOSS)[-1][1]
    assert not comparison.warnings


def test_runs_of_the_same_fold_and_seed_are_paired(sweep):
    """So the difference is that of the pooled errors, whatever the order of the runs."""
    comparison = compare(read_results([sweep]))
    one, five = comparison.variants
    expected = difference(
        *(
            np.stack([np.concatenate([side.runs[s, f"fold {f}"].errors[""] for f in range(3)]) for s in (0, 1)])
            for side in (five, one)
        ),
        folds=np.repeat(range(3), 24),
    )
    assert comparison.difference(five, LOSS) == expected


def test_a_seed_that_lacks_a_fold_is_left_out(sweep):
    for run in sweep.glob("*snr_gamma=5_seed=1*fold=2"):
        (run / "run.json").write_text((run / "run.json").read_text().replace('"finished"', '"failed"'))
    comparison = compare(read_results([sweep]))
    five = comparison.variants[1]
    assert comparison.pairs(five) == [(0, f"fold {number}") for number in range(3)]
    assert complete(five.runs, [(0, "fold 0"), (1, "fold 0"), (1, "fold 1")]) == [(1, "fold 0"), (1, "fold 1")]
    assert any("no runs with seed=1 fold 2" in warning for warning in comparison.warnings)


def test_a_fold_that_no_run_held_out_is_named(tmp_path):
    for gamma in (1, 5):
        for number in (0, 2):
            write(tmp_path, gamma, 0, number)
    comparison = compare(read_results([tmp_path]))
    assert "snr_gamma=1: no run of fold 1, so the images held out there are in no estimate." in comparison.warnings


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"folds": {"number": 4, "images": "all"}}, "on folds of different images, or some without folds"),
        ({"folds": {"number": 3, "images": "others"}}, "on folds of different images, or some without folds"),
        ({"hash": "of fewer"}, "fold 0 consists of different images in different runs"),
        ({"autoencoder": "c"}, "in the latents of different autoencoders"),
    ],
)
def test_only_the_folds_of_one_data_set_are_pooled(other, message, sweep):
    write(sweep, 20, 0, 0, **other)
    with pytest.raises(ConfigError, match=message):
        compare(read_results([sweep]))


def test_folds_and_a_single_held_out_set_are_not_mixed(sweep):
    write_run(sweep / "whole", "loss.snr_gamma=20", battery=FACTS | {"hash": "whole", "images": "w"})
    with pytest.raises(ConfigError, match=r"some without folds, so .* the same dataset and validation.folds"):
        compare(read_results([sweep]))


def test_runs_measured_on_training_images_are_not_mixed_with_others(tmp_path):
    write_run(tmp_path / "held_out", "loss.snr_gamma=1")
    run = write_run(tmp_path / "train", "loss.snr_gamma=5", battery=FACTS | {"hash": "t", "on": "train"})
    (run / "validation").rename(run / "moved")
    (run / "moved").rename((run / "validation").mkdir() or run / "validation" / "train")
    metrics = (run / "metrics.jsonl").read_text().replace('"val/loss"', '"val/train_loss"')
    (run / "metrics.jsonl").write_text(metrics)
    with pytest.raises(ConfigError, match=r"some on images that they are trained on, others on held-out ones"):
        compare(read_results([tmp_path]))
    alone = compare(read_results([run]))
    assert alone.headline.name == "val/train_loss"
    assert any("It says nothing of new images" in warning for warning in alone.warnings)
    assert all(metric.name != "val/loss" for metric in alone.metrics)


def errors(rng, seeds, folds, images, spreads, effect=EFFECT, levels=8):
    """Squared errors of two variants, [2, S, N, K], and each image's fold, [N].

    spreads: of the effects that a variant has on a fold, a seed of it on a fold, a seed of it, an image, a run's image.
    """
    of = np.arange(images) % folds
    on_fold, on_run, on_seed, on_image, rest = spreads

    def normal(*shape):
        return rng.standard_normal(shape)

    log = 0.5 * normal(images, 1) + 0.3 * normal(images, levels)
    log = log + on_fold * normal(2, 1, folds, 1)[:, :, of] + on_run * normal(2, seeds, folds, 1)[:, :, of]
    log += (
        on_seed * normal(2, seeds, 1, 1) + on_image * normal(2, 1, images, 1) + rest * normal(2, seeds, images, levels)
    )
    log[0] += effect
    return np.exp(log), of


SPREADS = {
    "images": (0.0, 0.0, 0.0, 0.05, 0.03),
    "runs": (0.0, 0.03, 0.0, 0.03, 0.03),
    "folds": (0.05, 0.02, 0.01, 0.05, 0.03),
    "seeds": (0.01, 0.02, 0.05, 0.05, 0.03),
}


def coverage(repetitions, seeds, folds, images, spreads, counted=True):
    rng, hits = np.random.default_rng(0), 0
    for _ in range(repetitions):
        table, of = errors(rng, seeds, folds, images, spreads)
        found = difference(*table, folds=of if counted else None)
        hits += found.low <= np.expm1(EFFECT) <= found.high
    return hits / repetitions


@pytest.mark.slow
@pytest.mark.parametrize("kind", SPREADS)
@pytest.mark.parametrize(("seeds", "folds", "images"), [(3, 4, 20), (3, 5, 40), (5, 3, 15)])
def test_the_interval_over_folds_holds_the_truth(seeds, folds, images, kind):
    assert 0.93 <= coverage(1000, seeds, folds, images, SPREADS[kind]) <= 0.985


@pytest.mark.slow
def test_counting_images_of_a_fold_one_by_one_would_promise_too_much():
    assert coverage(1000, 3, 4, 20, SPREADS["folds"], counted=False) < 0.93
