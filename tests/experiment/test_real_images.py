"""Real images of the prompts stand beside what the model draws."""

import numpy as np
from PIL import Image

from t2i.data.splits import Captioned, Split
from t2i.experiment.real_images import real_images, write_real_images
from t2i.runs.samples_file import REAL, read_samples


def split(*captions: tuple[str, ...], colour: int) -> Split:
    """Images of 8 × 4 pixels whose green is their index."""

    def pixels(index, view=0):
        return np.full((4, 8, 3), (colour, index, 0), dtype=np.uint8)

    return Split(captions, pixels, np.ones(len(captions)), "")


DATA = Captioned(
    split(("a dog",), ("Red  Apple", "a fruit"), ("cat",), colour=100), split(("sea",), ("cat",), colour=200)
)


def test_they_are_those_with_the_prompt_as_caption_held_out_ones_first():
    found = real_images(["red apple", "cat", "nothing", "a fruit"], DATA)
    assert [image and image.getpixel((0, 0)) for image in found] == [(100, 1, 0), (200, 1, 0), None, (100, 1, 0)]


def test_they_are_kept_as_the_samples_are_and_those_of_other_prompts_go(tmp_path):
    write_real_images(tmp_path, ["sea", "nothing"], DATA)
    sea, nothing = read_samples(tmp_path / "samples" / REAL, 2)
    assert sea.size == nothing.size == (8, 8)
    assert sea.getpixel((4, 4)) == (200, 0, 0)
    assert nothing.getextrema() == ((255, 255),) * 3
    write_real_images(tmp_path, ["nothing"], DATA)
    assert not (tmp_path / "samples" / REAL).exists()


def test_a_stream_is_not_searched():
    stream = Captioned(object(), DATA.validation)
    assert real_images(["a dog", "sea"], stream)[0] is None
    assert isinstance(real_images(["a dog", "sea"], stream)[1], Image.Image)
