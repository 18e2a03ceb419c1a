"""Samples in one row with their prompts below, and rows of before, which had none."""

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from t2i.config import ConfigError
from t2i.runs.samples_file import HEIGHT, read_samples, write_samples

PROMPTS = ["red apple", "", "a very long prompt with many more words than fit below an image of this size, and " * 3]


@pytest.fixture
def images():
    return [Image.fromarray(np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8)) for i in range(3)]


def test_the_images_come_back_bit_for_bit_and_the_prompts_stand_below(images, tmp_path):
    write_samples(tmp_path / "row.png", images, PROMPTS)
    assert [image.tobytes() for image in read_samples(tmp_path / "row.png", 3)] == [image.tobytes() for image in images]
    with Image.open(tmp_path / "row.png") as row:
        assert row.width == 3 * 64
        below = np.asarray(row.convert("L"))[48:]
    assert 10 < len(below) < 80
    words, nothing, many = np.split(below, 3, axis=1)
    assert words.min() < 100
    assert nothing.min() == 255
    assert (many < 100).sum() > (words < 100).sum()


def test_a_row_without_prompts_is_read_as_before(images, tmp_path):
    row = Image.fromarray(np.hstack([np.asarray(image) for image in images]))
    row.save(tmp_path / "row.png")
    assert [image.tobytes() for image in read_samples(tmp_path / "row.png", 3)] == [image.tobytes() for image in images]


@pytest.mark.parametrize("height", ["0", "-1", "49", "9" * 30, "x", ""])
def test_a_height_that_can_not_be_is_not_believed(images, tmp_path, height):
    about = PngInfo()
    about.add_text(HEIGHT, height)
    images[0].save(tmp_path / "row.png", pnginfo=about)
    (image,) = read_samples(tmp_path / "row.png", 1)
    assert image.size == (64, 48)


def test_images_without_prompts_are_refused(tmp_path):
    """A damaged config.yaml may have lost them."""
    write_samples(tmp_path / "row.png", [Image.new("RGB", (8, 8))], ["red apple"])
    with pytest.raises(ConfigError, match=r"row\.png holds images, although samples.prompts is empty"):
        read_samples(tmp_path / "row.png", 0)
