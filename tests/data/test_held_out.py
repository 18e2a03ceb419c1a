import numpy as np
import pytest
from helpers.image_folders import CAPTIONS, as_jsonl, from_folder
from hypothesis import given
from hypothesis import strategies as st

from t2i.config import ConfigError
from t2i.data.held_out import by_fold, by_hash
from t2i.data.images import Facts


def facts(number, seed=0):
    random = np.random.default_rng(seed)
    return [Facts(random.bytes(32).hex(), 64, 64, "") for _ in range(number)]


@given(st.integers(1, 400), st.floats(0.01, 0.5), st.integers(0, 20), st.integers(0, 100))
def test_at_least_the_minimum_or_a_fifth_is_held_out_and_never_less_than_the_fraction(number, share, minimum, seed):
    images = facts(number, seed)
    by_share = [image.uniform < share for image in images]
    held_out = by_hash(images, share, minimum)
    assert sum(held_out) == max(sum(by_share), min(minimum, max(1, number // 5)))
    assert all(out for out, before in zip(held_out, by_share, strict=True) if before)


def test_large_sets_and_runs_from_before_the_minimum_hold_out_what_they_did():
    large, small = facts(1000), facts(20)
    assert by_hash(large, 0.05, 8) == [image.uniform < 0.05 for image in large]
    assert by_hash(small, 0.05, 0) == [image.uniform < 0.05 for image in small]


def test_copies_of_an_image_are_on_the_same_side():
    images = facts(10) * 3
    held_out = by_hash(images, 0.05, 8)
    assert held_out[:10] == held_out[10:20] == held_out[20:]
    parts = [by_fold(images, [("a",)] * 30, 5, fold)[0] for fold in range(5)]
    assert all(part[:10] == part[10:20] == part[20:] for part in parts)


@given(st.integers(2, 60), st.integers(2, 10))
def test_every_image_is_in_one_of_folds_of_equal_size(number, folds):
    images = facts(number)
    if number < folds:
        with pytest.raises(ConfigError, match=rf"validation.folds={folds}: there are only {number} different images"):
            by_fold(images, [("a",)] * number, folds, 0)
        return
    parts = [by_fold(images, [("a",)] * number, folds, fold) for fold in range(folds)]
    held_out = np.array([held_out for held_out, _ in parts])
    assert (held_out.sum(0) == 1).all()
    assert np.ptp(held_out.sum(1)) <= 1
    assert len({fold.images for _, fold in parts}) == 1


def test_a_folder_is_divided_into_folds(tmp_path):
    as_jsonl(tmp_path)
    folds = [from_folder(tmp_path, folds=3, fold=fold) for fold in range(3)]
    held_out = [captions for data in folds for captions in data.validation.captions]
    assert sorted(held_out) == sorted((caption,) for caption in CAPTIONS.values())
    for data in folds:
        assert not set(data.train.captions) & set(data.validation.captions)
        assert len(data.train) + len(data.validation) == len(CAPTIONS)
    assert {data.fold.images for data in folds} == {folds[0].fold.images}


def test_images_that_a_folder_sets_apart_leave_nothing_for_folds(tmp_path):
    as_jsonl(tmp_path / "validation")
    with pytest.raises(ConfigError, match=r"validation.folds=2: .* has validation images of its own"):
        from_folder(tmp_path, folds=2, fold=0)


def test_nothing_is_held_out_if_no_fraction_is(tmp_path):
    as_jsonl(tmp_path)
    data = from_folder(tmp_path, validation_share=None, min_validation_samples=8)
    assert (len(data.train), len(data.validation)) == (len(CAPTIONS), 0)
