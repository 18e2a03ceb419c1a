import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from t2i.config import ConfigError
from t2i.data.images import Facts, examine
from t2i.data.preparation import ImageSettings, Preparation

PLAIN = {"crop": "center", "crop_variants": 1, "flip": False, "interpolation": "lanczos", "buckets": False}


def preparation(**changes):
    return Preparation(ImageSettings(**{"resolution": 16, "bucket_step": 16, **PLAIN, **changes}))


def png(image):
    """The bytes of a PNG file."""
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


@given(st.integers(1, 60), st.integers(1, 60))
def test_an_image_of_any_shape_is_cropped_to_the_square(width, height):
    content = png(Image.new("RGB", (width, height), (200, 100, 50)))
    pixels = preparation(crop="random", crop_variants=2, flip=True).pixels(content, examine(content), 3)
    assert pixels.shape == (16, 16, 3)
    assert np.abs(pixels.astype(int) - [200, 100, 50]).max() <= 1


def test_the_middle_of_wide_and_of_tall_images():
    """Only green is left of an image with thirds of red, green and blue."""
    thirds = Image.new("RGB", (48, 16), "blue")
    thirds.paste((255, 0, 0), (0, 0, 16, 16))
    thirds.paste((0, 255, 0), (16, 0, 32, 16))
    for image in (thirds, thirds.rotate(90, expand=True)):
        content = png(image)
        pixels = preparation(interpolation="nearest").pixels(content, examine(content), 0)
        assert (pixels == [0, 255, 0]).all()


def test_views_are_windows_and_their_mirror_images():
    ramp = Image.fromarray(np.tile(np.arange(160, dtype=np.uint8), (16, 1)))
    content = png(ramp)
    cut = preparation(crop="random", crop_variants=4, flip=True, interpolation="nearest")
    views = [cut.pixels(content, examine(content), view)[..., 0] for view in range(cut.views)]
    assert len(views) == 8
    starts = {int(view[0, 0]) for view in views[::2]}
    assert len(starts) > 1
    for plain, mirrored in zip(views[::2], views[1::2], strict=True):
        assert np.array_equal(plain[:, ::-1], mirrored)
        assert np.array_equal(plain[0], np.arange(plain[0, 0], plain[0, 0] + 16))


@given(st.sampled_from([(64, 16), (256, 64), (512, 64), (1024, 64)]))
def test_buckets_have_about_the_area(given_sizes):
    resolution, step = given_sizes
    sizes = preparation(resolution=resolution, bucket_step=step, buckets=True).settings.sizes()
    assert (resolution, resolution) in sizes
    assert {(height, width) for width, height in sizes} == set(sizes)
    for width, height in sizes:
        assert width % step == height % step == 0
        assert resolution**2 - max(width, height) * step < width * height <= resolution**2
        assert max(width, height) <= 2 * min(width, height)


def test_an_image_goes_to_the_bucket_of_its_shape():
    """It is scaled by the same factor in width and height: a circle stays a circle."""
    cut = preparation(resolution=512, bucket_step=64, buckets=True)
    assert cut.size(Facts("", 1000, 1000, "")) == (512, 512)
    assert cut.size(Facts("", 1500, 1000, "")) == (576, 448) or cut.size(Facts("", 1500, 1000, ""))[0] == 640
    assert cut.size(Facts("", 300, 3000, ""))[0] < 448
    for width, height in cut.settings.sizes():
        assert cut.size(Facts("", 3 * width, 3 * height, "")) == (width, height)


@given(st.integers(16, 40), st.booleans(), st.booleans(), st.lists(st.floats(0, 0.999), min_size=3, max_size=3))
def test_the_framing_says_where_the_crop_is(long, wide, flip, draws):
    """The image, mirrored if the crop is, has the crop at that position; here it needs no scaling."""
    width, height = (long, 16) if wide else (16, long)
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    cut = preparation(resolution=16, crop="random", flip=flip, interpolation="nearest")
    content = png(Image.fromarray(values))
    facts, draws = examine(content), np.array(draws)
    *size, top, left, high, across = cut.drawn_framing(facts, draws)
    assert (size, high, across) == ([height, width], 16, 16)
    seen = values[:, ::-1] if flip and draws[2] < 0.5 else values
    windows = [
        seen[top + down : top + down + 16, left + right : left + right + 16]
        for down in (-1, 0, 1) for right in (-1, 0, 1)
        if top + down >= 0 and left + right >= 0
    ]  # fmt: skip
    assert any(np.array_equal(cut.drawn(content, facts, draws), window) for window in windows)


def test_the_framing_is_in_pixels_of_the_scaled_image():
    facts = Facts("0" * 64, width=1000, height=500, problem="")
    square = preparation(resolution=100)
    assert square.framing(facts, 0) == (500, 1000, 0, 50, 100, 100)
    assert preparation(resolution=100, flip=True).framing(facts, 1) == (500, 1000, 0, 50, 100, 100)


def test_a_bucket_step_that_leaves_no_bucket_is_refused():
    with pytest.raises(ConfigError, match=r"dataset.bucket_step=128 leaves no bucket of 64² pixels; make"):
        preparation(resolution=64, bucket_step=128, buckets=True)
