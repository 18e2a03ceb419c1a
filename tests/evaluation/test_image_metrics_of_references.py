"""Copies of training images, likeness to references, and diversity."""

import io

import numpy as np
import pytest
import torch
from helpers import networks
from PIL import Image

from t2i.config import ConfigError
from t2i.data.openmoji import catalogue, draw
from t2i.evaluation.image_metrics.copies import Copies, find, nearest
from t2i.evaluation.image_metrics.diversity import Diversity
from t2i.evaluation.image_metrics.features import features
from t2i.evaluation.image_metrics.likeness import ClipI, Dino
from t2i.evaluation.image_metrics.metric import Judged

CPU = torch.device("cpu")
GROUPS = ("animals", "food", "faces", "nature")


def jpeg(image):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, subsampling=0)
    return Image.open(file).convert("RGB")


def noised(image):
    pixels = np.asarray(image) + np.random.default_rng(0).normal(0, 5, (64, 64, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def emoji():
    """Training images and held-out ones, of several kinds: some faces differ by a mouth alone."""
    chosen = [entry for entry in catalogue() if entry.group in GROUPS]
    train, held_out = ([entry for entry in chosen if entry.split == split] for split in ("train", "validation"))
    return [draw(entry.emoji, 64) for entry in train[::3]], [draw(entry.emoji, 64) for entry in held_out]


@pytest.mark.slow
def test_planted_copies_are_found_and_unseen_images_are_none(emoji, cache):
    train, held_out = emoji
    planted = [train[10], noised(train[40]), jpeg(train[70]), noised(jpeg(train[100]))]
    unseen, held_out = held_out[::6], [image for index, image in enumerate(held_out) if index % 6]
    given = Judged(prompts="abcd", images=[*planted, *unseen], references=held_out, trained_on=train)
    metric = Copies("tiny", 0.02, None, 64)
    metric.check()
    scores = metric(given, CPU, cache)
    assert scores.values.ravel().tolist() == [1] * 4 + [0] * 4
    assert scores.value == pytest.approx(4 / 8)
    assert scores.details["copies"] == 4
    pairs = scores.details["pairs"]
    assert (pairs[0]["prompt"], pairs[0]["seed"], pairs[0]["training_image"]) == (0, 0, 10)  # the exact one
    assert {pair["training_image"] for pair in pairs[:4]} == {10, 40, 70, 100}
    assert len(pairs) == 8
    assert all(pair["similarity"] > pair["held_out_similarity"] for pair in pairs[:4])


@pytest.mark.slow
def test_twins_across_the_split_hide_no_copy_and_many_are_told_of(emoji, cache):
    """Data sets have duplicates; OpenMoji itself has emoji that are drawn alike."""
    train, held_out = emoji
    planted = [noised(train[60])]

    def scores(twins):
        given = Judged(prompts="a", images=planted, references=[*held_out, *twins], trained_on=train)
        return Copies("tiny", 0.1, None, 64)(given, CPU, cache)

    one, many = scores([train[5]]), scores(train[5:15])
    assert one.value == 1
    assert not one.notes
    assert many.value == 0
    assert "twins among the training images" in many.notes[0]


def test_what_is_like_a_held_out_image_as_well_is_no_copy(emoji, cache):
    """An image of the model that is like both shows the kind of images, not one of them."""
    train, held_out = emoji
    given = Judged(prompts="a", images=[noised(train[60])], references=[*held_out, noised(train[60])], trained_on=train)
    assert Copies("tiny", 0.02, None, 64)(given, CPU, cache).value == 0


@pytest.mark.parametrize(("false_calls", "count", "bound"), [(0.05, 60, 3 / 61), (0.05, 10, 1 / 11), (0.0, 60, 1 / 61)])
def test_images_that_copy_nothing_are_called_copies_at_most_that_often(false_calls, count, bound):
    """Whatever their distribution is, as long as samples and held-out images are of the same."""
    rng, rates = np.random.default_rng(0), []
    for _ in range(300):
        sets = (rng.standard_t(3, size=(size, 3)) for size in (40, count, 80))
        found = find(*(x / np.linalg.norm(x, axis=1, keepdims=True) for x in sets), false_calls)
        assert found.false_calls == pytest.approx(bound)
        rates.append(found.copies.mean())
    assert np.mean(rates) < bound + 3 * np.std(rates) / len(rates) ** 0.5


def test_an_image_that_is_in_the_training_set_several_times_can_be_copied():
    """Duplicates are what is memorised first."""
    rng = np.random.default_rng(0)
    trained_on, held_out = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, 60, 8)))
    trained_on[10:14] = trained_on[5]
    copy = trained_on[5] + rng.normal(size=8) * 1e-3
    assert find(copy[None] / np.linalg.norm(copy), held_out, trained_on, 0.0).copies.all()


def test_few_held_out_images_are_told_of(emoji, cache):
    train, held_out = emoji
    given = Judged(prompts="a", images=train[:1], references=held_out[:7], trained_on=train)
    (note,) = Copies("tiny", 0.02, None, 64)(given, CPU, cache).notes
    assert "calibrated on 7 held-out images alone: up to 12% of images" in note


def test_a_probability_of_false_calls_is_one():
    with pytest.raises(ConfigError, match=r"metric.copies.false_calls=1.5 must be a probability"):
        Copies("tiny", 1.5, None, 64).check()


def test_the_nearest_is_that_of_all_cosines():
    rng = np.random.default_rng(0)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (rng.normal(size=(30, 4)), rng.normal(size=(20, 4))))
    which, cosine = nearest(a, b, block=7)
    assert which.tolist() == (a @ b.T).argmax(1).tolist()
    assert np.allclose(cosine, (a @ b.T).max(1))


@pytest.mark.slow
@pytest.mark.parametrize(("metric", "kind"), [(Dino, "dinov2"), (Dino, "dino"), (ClipI, "clip")])
def test_likeness_is_the_cosine_to_the_reference_or_the_mean_of_those_to_all(metric, kind, emoji, tmp_path):
    images, references = emoji[0][:6], emoji[1][:4]
    likeness = metric(str(networks.save(kind, tmp_path / kind)), None, 4)
    likeness.check()
    a, b = (torch.from_numpy(features(likeness.network, x, CPU, None).values) for x in (images, references))
    cosines = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1).numpy()
    to_all = likeness(Judged(prompts="abc", images=images, references=references), CPU, None)
    assert np.allclose(to_all.values, cosines.mean(1).reshape(3, 2), atol=1e-4)
    own = likeness(Judged(prompts="abc", images=images, references=references, reference_of=[2, 0, 2]), CPU, None)
    assert np.allclose(own.values, cosines[range(6), [2, 2, 0, 0, 2, 2]].reshape(3, 2), atol=1e-4)
    assert own.identity != to_all.identity


def test_diversity_is_the_mean_over_pairs_of_seeds(emoji, cache):
    images = emoji[0][:6]
    diversity = Diversity("tiny", None, 64)
    diversity.check()
    units = features(diversity.network, images, CPU, cache).units
    scores = diversity(Judged(prompts="ab", images=images), CPU, cache)
    expected = [np.mean([1 - units[i] @ units[j] for i in p for j in p if i < j]) for p in (range(3), range(3, 6))]
    assert np.allclose(scores.values[:, 0], expected, atol=1e-6)
    assert scores.values.shape == (2, 1)
    same = Judged(prompts="a", images=images[:1] * 3)
    assert diversity(same, CPU, cache).value == pytest.approx(0, abs=1e-6)
