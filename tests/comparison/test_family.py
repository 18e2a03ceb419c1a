"""Runs that go on from others in a comparison: shared steps are drawn and paid once, and their noise is shared."""

import json

import pytest
from helpers.synthetic import write_run

from t2i.comparison.curves import own_curve
from t2i.comparison.family import shared_trunks, tree
from t2i.comparison.grouping import compare
from t2i.comparison.html_report import write_page
from t2i.comparison.results import read_results


def fork(folder, trunk, step, *overrides, seed=0, history="h", **settings):
    """A run of `write_run`, an hour for each 100 steps, that goes on from `trunk`."""
    origin = {"run": f"../{trunk}", "step": step}
    write_run(folder, *overrides, f"seed={seed}", **settings, parent=origin | {"history": history}, ancestors=[origin])
    return folder


def test_the_tree_shows_each_run_once_and_its_own_hours(tmp_path):
    write_run(tmp_path / "base")
    fork(tmp_path / "low", "base", 100, "optimizer.lr=1e-5")
    fork(tmp_path / "late", "base", 150, "optimizer.lr=1e-6")
    lines = tree(read_results([tmp_path]))
    assert lines == [
        "base: to step 200, 2.0 hours",
        "├─ low: from step 100 to step 200, 1.0 hours",
        "└─ late: from step 150 to step 200, 1.0 hours",  # it was measured at step 100 before
        "In total 4.0 hours, with the steps that several runs share counted once.",
    ]
    assert tree(read_results([tmp_path / "base"])) == []


def test_a_trunk_that_is_not_compared_is_counted_once(tmp_path):
    for name in ("a", "b"):
        fork(tmp_path / "forks" / name, "../base", 100, f"loss.snr_gamma={len(name) + ord(name)}")
    lines = tree(read_results([tmp_path / "forks"]))
    assert lines[0] == "base: to step 100, 1.0 hours (not among these runs)"
    assert lines[-1].startswith("In total 3.0 hours")


def test_a_grandchild_stands_below_its_parent(tmp_path):
    write_run(tmp_path / "base")
    fork(tmp_path / "child", "base", 100)
    chain = [{"run": "../child", "step": 150}, {"run": "../base", "step": 100}]
    write_run(tmp_path / "grandchild", "loss=mse", parent=chain[0], ancestors=chain)
    lines = tree(read_results([tmp_path]))
    assert [line.partition(":")[0] for line in lines[:-1]] == ["base", "└─ child", "   └─ grandchild"]
    assert tree(read_results([tmp_path / "grandchild"]))[1].startswith("└─ child: from step 100 to step 150")


def test_forks_are_compared_by_what_was_typed_and_said_to_share_their_trunk(tmp_path):
    for gamma in (1, 5):
        fork(tmp_path / f"gamma-{gamma}", "base", 100, f"loss.snr_gamma={gamma}", "from.run=base@100")
    comparison = compare(read_results([tmp_path]))
    assert comparison.factors.by == ("loss.snr_gamma",)
    (warning,) = [text for text in comparison.warnings if "in common" in text]
    assert "gamma-1, gamma-5 have 100 steps of base in common" in warning
    run = comparison.runs[0]
    assert run.hours == 1.0
    assert [step for step, *_ in own_curve(run, comparison.headline)] == [100, 200]


def test_forks_of_trunks_that_differ_in_the_seed_are_seeds_of_one_setting(tmp_path):
    for seed in (0, 1):
        for gamma in (1, 5):
            name = f"gamma-{gamma}_seed-{seed}"
            fork(tmp_path / name, f"trunk-{seed}", 100, f"loss.snr_gamma={gamma}", f"from.run=trunk-{seed}", seed=seed)
    comparison = compare(read_results([tmp_path]))
    assert comparison.factors.by == ("loss.snr_gamma",)
    assert [sorted(variant.runs) for variant in comparison.variants] == [[(0,), (1,)]] * 2
    (warning,) = [text for text in comparison.warnings if "in common" in text]
    assert warning.count("in common") == 2  # once for each trunk


def test_runs_of_their_own_share_nothing(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / str(seed), f"seed={seed}")
    assert shared_trunks(read_results([tmp_path])) == []


@pytest.mark.slow
def test_the_page_has_the_tree_and_the_trunk_is_drawn_once(tmp_path):
    for gamma in (1, 5):
        fork(tmp_path / f"gamma-{gamma}", "base", 100, f"loss.snr_gamma={gamma}")
    comparison = compare(read_results([tmp_path]))
    write_page(comparison, comparison.headline, tmp_path)
    page = (tmp_path / "comparison.html").read_text()
    assert all(f"{line}<br>" in page for line in tree(comparison.results))
    assert "\ufffd" not in page, "a line break, shown as a character that can't be printed"
    assert "└─ gamma-5: from step 100" in page
    assert json.loads((tmp_path / "gamma-1" / "run.json").read_text())["parent"]["step"] == 100


def test_the_curve_of_a_trunk_ends_where_its_last_fork_begins(tmp_path):
    from t2i.comparison.curves import _trunks

    fork(tmp_path / "early", "base", 100, "loss.snr_gamma=1")
    fork(tmp_path / "late", "base", 200, "loss.snr_gamma=2", validated=(0, 100, 200, 300))
    comparison = compare(read_results([tmp_path]), step=200)
    (points,) = _trunks(comparison, comparison.headline)
    assert [step for step, *_ in points] == [0, 100, 200]
