"""The perceptual hash finds copies and tells different images apart."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy.fft import dctn

from t2i.inspection import near_duplicates
from t2i.inspection.near_duplicates import MOST_BITS, Pair, groups, look, near


def scene(number, size=(200, 150)):
    """Blobs of colour, as unlike each other as photographs are."""
    random = np.random.default_rng(number)
    y, x = np.mgrid[: size[1], : size[0]] / max(size)
    image = np.zeros((*x.shape, 3))
    for _ in range(6):
        across, down, width = random.random(3)
        image += random.uniform(-150, 250, 3) * np.exp(-((x - across) ** 2 + (y - down) ** 2) / 0.08 / width)[..., None]
    return Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))


def compressed(image):
    image.save(file := io.BytesIO(), "jpeg", quality=30)
    return Image.open(file).convert("RGB")


def test_the_frequencies_are_those_of_the_discrete_cosine_transform():
    grey = np.random.default_rng(0).random((32, 32))
    ours = near_duplicates._DCT @ grey @ near_duplicates._DCT.T
    assert np.allclose(ours, dctn(grey, type=2)[:8, :8] / 4)


def test_the_hash_of_the_mirrored_image_needs_no_mirrored_image():
    for number in range(5):
        image = scene(number, (64, 64))
        assert look(image).mirrored == look(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)).bits


@pytest.mark.parametrize(
    ("change", "mirrored"),
    [
        (lambda image: image, False),
        (lambda image: image.resize((90, 70)), False),
        (compressed, False),
        (lambda image: ImageEnhance.Brightness(image).enhance(0.9), False),
        (lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), True),
    ],
)
def test_copies_are_found_among_others(change, mirrored):
    images = [scene(number) for number in range(20)]
    found = near([look(image) for image in (*images, change(images[7]))])
    assert [(pair.first, pair.second, pair.mirrored) for pair in found] == [(7, 20, mirrored)]


def test_the_same_drawing_in_another_colour_is_another_image():
    red, blue = (Image.new("RGB", (64, 64), "white") for _ in range(2))
    red.paste((200, 30, 30), (16, 16, 48, 48))
    blue.paste((30, 60, 220), (16, 16, 48, 48))
    assert (look(red).bits ^ look(blue).bits).bit_count() <= MOST_BITS
    assert near([look(red), look(blue)]) == []


def test_blocks_change_nothing(monkeypatch):
    images = [scene(number % 4) for number in range(11)]
    whole = near([look(image) for image in images])
    assert whole == [Pair(i, j, 0, False) for i in range(11) for j in range(i + 1, 11) if i % 4 == j % 4]
    monkeypatch.setattr(near_duplicates, "BLOCK", 3)
    assert near([look(image) for image in images]) == whole
    assert near([]) == []


def test_groups_are_what_pairs_connect():
    assert groups([(4, 5), (1, 2), (2, 3), (3, 1)]) == [[1, 2, 3], [4, 5]]
