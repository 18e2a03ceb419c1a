import dataclasses
import threading

import numpy as np
import pytest
import torch

from t2i.captioned import openmoji
from t2i.encoding import encode
from t2i.models.stable_diffusion import load


@pytest.fixture(scope="module")
def split():
    return openmoji(64, {"hearts": 1.0, "food": 1.0}).validation


@pytest.fixture
def model(small_pipeline):
    return load(str(small_pipeline))


class Counting:
    """A model that counts the pictures it encodes."""

    def __init__(self, model):
        self.model, self.pictures = model, 0

    def __getattr__(self, name):
        return getattr(self.model, name)

    def encode(self, pixels):
        self.pictures += len(pixels)
        return self.model.encode(pixels)


def test_the_cache_holds_what_the_encoders_say(split, model, tmp_path):
    encoded = encode(split, model, tmp_path)
    pixels = torch.from_numpy(np.stack([split.pixels(i) for i in range(len(split))]))
    mean, std = model.encode(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1)
    cached_mean, cached_std = encoded.moments(list(range(len(split))))
    assert np.allclose(cached_mean, mean, atol=1e-5)
    assert np.allclose(cached_std, std, atol=1e-6)
    text = encoded.text([2, None, 0])["encoder_hidden_states"]
    expected = model.embed([split.captions[2], "", split.captions[0]])["encoder_hidden_states"]
    assert torch.allclose(text, expected, atol=1e-5)


def test_the_second_run_encodes_nothing(split, model, tmp_path):
    first, second = Counting(model), Counting(model)
    fingerprint = encode(split, first, tmp_path).fingerprint
    assert encode(split, second, tmp_path).fingerprint == fingerprint
    assert (first.pictures, second.pictures) == (len(split), 0)


def test_other_weights_or_pictures_are_encoded_anew(split, model, tmp_path):
    before = encode(split, model, tmp_path).fingerprint
    with torch.no_grad():
        next(model.vae.parameters()).view(-1)[0] += 1e-3
    after = encode(split, model, tmp_path).fingerprint
    changed = dataclasses.replace(split, fingerprint=split.fingerprint + "x")
    assert len({before, after, encode(changed, model, tmp_path).fingerprint}) == 3


def test_two_runs_that_start_at_once_encode_once(split, model, tmp_path):
    models = [Counting(model), Counting(model)]
    threads = [threading.Thread(target=encode, args=(split, each, tmp_path)) for each in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.pictures for each in models) == [0, len(split)]
