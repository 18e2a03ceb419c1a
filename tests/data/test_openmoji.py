import hashlib

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from t2i.config import ConfigError
from t2i.data.openmoji import catalogue, draw, openmoji
from t2i.models.bases import TINY

RESOLUTION = 64
PSNR = 30.1  # dB, what `python -m t2i.tiny.vae` reported for the held-out images


@pytest.fixture(scope="module")
def entries():
    return catalogue()


@pytest.fixture(scope="module")
def images(entries):
    """Every ninth training image and all held-out ones, by entry."""
    chosen = [entry for i, entry in enumerate(entries) if entry.split == "validation" or i % 9 == 0]
    return {entry: draw(entry.emoji, RESOLUTION) for entry in chosen}


@pytest.mark.slow
def test_every_emoji_and_caption_is_there_once(entries):
    assert len({entry.emoji for entry in entries}) == len({entry.caption for entry in entries}) == len(entries)


@pytest.mark.slow
def test_no_image_is_blank(images):
    for entry, image in images.items():
        assert np.asarray(image).std() > 5, entry


@pytest.mark.slow
def test_no_image_is_cut_off_by_the_frame(images):
    """Ink may touch the border, but does not fill it."""
    for entry, image in images.items():
        border = np.asarray(image.convert("L"))[[0, -1]]
        assert (border < 128).mean() < 0.5, entry


def test_train_and_validation_share_no_image(images):
    of_split = {"train": set(), "validation": set()}
    for entry, image in images.items():
        of_split[entry.split].add(image.tobytes())
    assert not of_split["train"] & of_split["validation"]


def test_the_split_is_what_the_pixels_say(images):
    share = {
        entry: int(hashlib.sha256(b"openmoji" + image.tobytes()).hexdigest(), 16) / 16**64
        for entry, image in images.items()
    }
    assert all((share[entry] < 0.06) == (entry.split == "validation") for entry in images)


def test_groups_that_can_be_held_back_are_clean(entries):
    captions = {group: {e.caption for e in entries if e.group == group} for group in {e.group for e in entries}}
    assert {"cat face", "monkey face", "lion", "panda", "fox"} <= captions["animal_faces"]
    assert {"cat", "grinning cat", "octopus", "honeybee"} <= captions["animals"]
    assert {"red apple", "banana", "kiwi fruit"} <= captions["fruit"]
    assert {"carrot", "hamburger", "hot beverage", "birthday cake"} <= captions["food"]
    assert {"flag of France", "flag of the United States", "flag of Wales"} <= captions["flags"]
    for group, of_group in captions.items():
        assert (group == "people_tones") == any("skin tone" in caption for caption in of_group), group


@pytest.mark.slow
def test_the_autoencoder_reconstructs_images_it_has_never_seen(images):
    held_out = [image for entry, image in images.items() if entry.split == "validation"][::4]
    images = torch.from_numpy(np.stack(held_out)).permute(0, 3, 1, 2).float() / 127.5 - 1
    vae = AutoencoderKL.from_pretrained(TINY / "pipeline" / "vae", dtype=torch.float32)
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mean
        error = (vae.decode(latents).sample.clamp(-1, 1) - images) / 2
    assert latents.shape[1:] == (4, 16, 16)
    assert (latents * vae.config.scaling_factor).std() == pytest.approx(1, abs=0.1)
    assert -10 * error.square().mean((1, 2, 3)).log10().mean() > PSNR - 1


def test_groups_are_weighted():
    groups = {"food": 1.0, "people_tones": 0.4}
    data = openmoji(64, groups)
    assert data.train.pixels(0).shape == (64, 64, 3)
    assert data.train.pixels(0).dtype == np.uint8
    assert set(data.train.weights) == {1.0, 0.4}
    assert not set(data.train.captions) & set(data.validation.captions)
    assert openmoji(32, groups).train.fingerprint != data.train.fingerprint


def test_unknown_group_is_refused():
    with pytest.raises(
        ConfigError, match=r"dataset.groups: OpenMoji has no group vegetables; choose from activities, animal_faces"
    ):
        openmoji(64, {"vegetables": 1.0})
    with pytest.raises(ConfigError, match=r"dataset.groups leaves no images"):
        openmoji(64, {"food": 0.0})
