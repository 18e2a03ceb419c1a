"""Which images are put side by side: those of runs that t2i compare would compare, or of folders."""

import json

import pytest
from helpers.contests import HASH, PROMPTS, draw_images, write_judged_run, write_sweep
from helpers.synthetic import write_run

from t2i.config import ConfigError
from t2i.judging.contestants import read_contest
from t2i.runs.image_files import INDEX

OTHER = "fedcba9876543210"


def test_variants_and_pairs_are_those_of_the_comparison(tmp_path):
    contest = read_contest([write_sweep(tmp_path)])
    assert list(contest.variants) == ["snr_gamma=1", "snr_gamma=5"]
    assert [list(models) for models in contest.variants.values()] == [[(0,), (1,)]] * 2
    assert (contest.baseline, contest.battery, contest.prompts) == ("snr_gamma=1", HASH, PROMPTS)


def test_keys_baseline_and_step_can_be_chosen(tmp_path):
    for gamma in (1, 5):
        for lr in ("3e-4", "1e-3"):
            overrides = (f"loss.snr_gamma={gamma}", f"optimizer.lr={lr}")
            write_judged_run(tmp_path / f"{gamma}-{lr}", *overrides, step=100)
    contest = read_contest([tmp_path], ["snr_gamma"], "snr_gamma=5", 100)
    assert (sorted(contest.variants), contest.baseline) == (["snr_gamma=1", "snr_gamma=5"], "snr_gamma=5")
    assert {model.step for models in contest.variants.values() for model in models.values()} == {100}


def test_a_run_that_is_left_out_is_named(tmp_path):
    write_sweep(tmp_path)
    write_run(tmp_path / "failed", "loss.snr_gamma=9", state="failed", error="ValueError: no")
    assert "failed is left out: ValueError: no." in read_contest([tmp_path]).notes


def test_runs_without_images_are_named_with_the_remedy(tmp_path):
    write_judged_run(tmp_path / "one", "loss.snr_gamma=1")
    write_judged_run(tmp_path / "early", "loss.snr_gamma=5", step=100)
    write_run(tmp_path / "none", "loss.snr_gamma=9")
    with pytest.raises(ConfigError) as error:
        read_contest([tmp_path])
    assert str(error.value) == (
        "these runs have no images at the step at which they are compared: early (step 200), none (step 200); "
        "`t2i evaluate PATH` draws them"
    )


def test_images_of_different_batteries_are_not_put_side_by_side(tmp_path):
    write_judged_run(tmp_path / "one", "loss.snr_gamma=1")
    write_judged_run(tmp_path / "two", "loss.snr_gamma=5", hash=OTHER)
    with pytest.raises(
        ConfigError, match=r"draws those of one battery.*\n  battery 01234567: one\n  battery fedcba98: two"
    ):
        read_contest([tmp_path])


def test_of_several_batteries_the_shared_one_is_chosen(tmp_path):
    write_judged_run(tmp_path / "one", "loss.snr_gamma=1")
    two = write_judged_run(tmp_path / "two", "loss.snr_gamma=5", hash=OTHER)
    draw_images(two / "images" / HASH[:8] / "step-000200")
    assert read_contest([tmp_path]).battery == HASH


def test_images_that_are_missing_are_counted(tmp_path):
    write_sweep(tmp_path, seeds=(0,))
    images = tmp_path / "snr_gamma-5_seed-0" / "images" / HASH[:8] / "step-000200"
    (images / "00003-1.png").unlink()
    contest = read_contest([tmp_path])
    assert "step-000200 lacks 1 images" in contest.notes[-1] or "snr_gamma-5_seed-0 lacks 1 images" in contest.notes[-1]
    assert (3, 1) not in contest.variants["snr_gamma=5"][(0,)].drawn


def test_folders_of_images_are_variants_by_name_and_meet_runs_of_all_seeds(tmp_path):
    folders = [draw_images(tmp_path / "others" / name) for name in ("base", "tool")]
    assert list(read_contest(folders).variants) == ["base", "tool"]
    contest = read_contest([write_sweep(tmp_path / "sweep"), folders[0]])
    assert list(contest.variants) == ["snr_gamma=1", "snr_gamma=5", "base"]
    assert list(contest.variants["base"]) == [(0,), (1,)]


def test_one_variant_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is only one variant"):
        read_contest([draw_images(tmp_path / "base")])


def test_a_damaged_index_is_named(tmp_path):
    folders = [draw_images(tmp_path / name) for name in ("base", "tool")]
    (folders[1] / INDEX).write_text(json.dumps({"hash": 3}))
    with pytest.raises(ConfigError, match=rf"tool/{INDEX}"):
        read_contest(folders)


def test_what_a_vote_keeps_of_an_image_names_its_run_relative_to_the_votes_and_its_content(tmp_path):
    contest = read_contest([write_sweep(tmp_path)])
    model = contest.variants["snr_gamma=5"][(1,)]
    shown = model.shown(0, 0, tmp_path.resolve())
    assert (shown.run, shown.step) == ("snr_gamma-5_seed-1", 200)
    assert shown.sha256 != model.shown(1, 0, tmp_path.resolve()).sha256


@pytest.mark.parametrize(
    "changes",
    [{"prompts": ["p"] * 30_000, "seeds": list(range(30_000))}, {"seeds": [10**400]}, {"seeds": [-1]}],
    ids=["many", "huge", "negative"],
)
def test_an_index_that_stands_for_more_images_than_any_has_is_named(changes, tmp_path):
    folder = draw_images(tmp_path / "one")
    index = json.loads((folder / INDEX).read_text()) | changes
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"index.json: prompts and seeds are too many, or seeds too large"):
        read_contest([folder, draw_images(tmp_path / "other")])
