import dataclasses
import json
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from t2i.config import ConfigError
from t2i.data.filling import readable
from t2i.data.latent_cache import encode
from t2i.data.openmoji import openmoji
from t2i.models.stable_diffusion import load


@pytest.fixture(scope="module")
def split():
    return openmoji(64, {"hearts": 1.0, "food": 1.0}).validation


@pytest.fixture
def model(small_pipeline):
    return load(str(small_pipeline))


class Counting:
    """A model that counts the images it encodes."""

    def __init__(self, model):
        self.model, self.images = model, 0

    def __getattr__(self, name):
        return getattr(self.model, name)

    def encode(self, pixels):
        self.images += len(pixels)
        return self.model.encode(pixels)


def test_the_cache_holds_what_the_encoders_say(split, model, tmp_path):
    encoded = encode(split, model, tmp_path)
    pixels = torch.from_numpy(np.stack([split.pixels(i) for i in range(len(split))]))
    mean, std = model.encode(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1)
    cached_mean, cached_std = encoded.moments(list(range(len(split))))
    assert np.allclose(cached_mean, mean, atol=1e-5)
    assert np.allclose(cached_std, std, atol=1e-6)
    text = encoded.text([2, None, 0])["encoder_hidden_states"]
    expected = model.embed([*split.captions[2], "", *split.captions[0]])["encoder_hidden_states"]
    assert torch.allclose(text, expected, atol=1e-5)


def test_the_second_run_encodes_nothing(split, model, tmp_path, monkeypatch):
    """Neither if it writes its home folder as a tilde."""
    first, second = Counting(model), Counting(model)
    fingerprint = encode(split, first, tmp_path).fingerprint
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert encode(split, second, f"~/{tmp_path.name}").fingerprint == fingerprint
    assert (first.images, second.images) == (len(split), 0)


def changed_copy(small_pipeline, folder, part):
    """A copy of the pipeline with one number changed in the weights of a part."""
    shutil.copytree(small_pipeline, folder)
    (file,) = (folder / part).glob("*.safetensors")
    weights = load_file(file)
    next(iter(weights.values())).view(-1)[0] += 1e-3
    save_file(weights, file, metadata={"format": "pt"})
    return load(str(folder))


def test_other_weights_or_images_are_encoded_anew(split, model, small_pipeline, tmp_path):
    before = encode(split, model, tmp_path).fingerprint
    model = changed_copy(small_pipeline, tmp_path / "other", "vae")
    after = encode(split, model, tmp_path).fingerprint
    changed = dataclasses.replace(split, fingerprint=split.fingerprint + "x")
    assert len({before, after, encode(changed, model, tmp_path).fingerprint}) == 3


def test_a_copy_of_the_pipeline_finds_the_same_encodings(split, model, small_pipeline, tmp_path):
    """So does one that another version of Diffusers wrote, or that has another denoiser."""
    fingerprint = encode(split, model, tmp_path).fingerprint
    copy = changed_copy(small_pipeline, tmp_path / "copy", "unet")
    for part in ("vae", "text_encoder"):
        file = tmp_path / "copy" / part / "config.json"
        settings = json.loads(file.read_text()) | {"_diffusers_version": "0.1", "transformers_version": "5.0"}
        file.write_text(json.dumps(settings, sort_keys=True))
    counting = Counting(copy)
    assert encode(split, counting, tmp_path).fingerprint == fingerprint
    assert counting.images == 0


def test_with_a_whole_cache_no_encoder_is_read(split, small_pipeline, tmp_path):
    encode(split, load(str(small_pipeline)), tmp_path)
    model = load(str(small_pipeline))
    encode(split, model, tmp_path).moments([0])
    assert model.parts.read.keys() == {"tokenizer"}


def test_what_will_be_stored_is_announced_with_its_size(split, model, tmp_path, caplog):
    with caplog.at_level("INFO", logger="t2i.data"):
        encoded = encode(split, model, tmp_path)
    for record, entries, what in zip(
        caplog.records[1::2], (encoded.latents, encoded.captions), ("images", "captions"), strict=True
    ):
        number, named, size, _ = record.args
        assert (number, named, size[-2:]) == (str(len(entries)), what, "kB")
        assert float(size[:-3]) * 1000 == pytest.approx(entries.nbytes(), rel=0.01)
        assert entries.nbytes() == pytest.approx(entries.packs[0].file.stat().st_size, rel=0.1)
    caplog.clear()
    encode(split, model, tmp_path)
    assert not caplog.records


def test_too_little_disk_space_is_reported_after_the_first_batch(split, model, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    counting = Counting(model)
    with pytest.raises(ConfigError, match=r"cache_dir: 6 encoded images need .* kB in .* only 1 kB are free; use"):
        encode(split, counting, tmp_path)
    assert counting.images <= 64
    assert not list(tmp_path.rglob("*.safetensors"))


def test_two_runs_that_start_at_once_encode_once(split, model, tmp_path):
    models = [Counting(model), Counting(model)]
    threads = [threading.Thread(target=encode, args=(split, each, tmp_path)) for each in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.images for each in models) == [0, len(split)]


def several_views(split):
    """The split with two views of each image, the second darker, and three captions of the first."""
    captions = [("one", "two", ""), *split.captions[1:]]
    pixels = lambda index, view=0: split.pixels(index) // (1 + view)  # noqa: E731
    return dataclasses.replace(split, captions=captions, pixels=pixels, views=2, fingerprint="several")


def test_draws_choose_among_views_and_captions(split, model, tmp_path):
    encoded = encode(several_views(split), model, tmp_path)
    assert len(encoded) == len(split)
    pixels = torch.from_numpy(np.stack([split.pixels(1) // (1 + view) for view in (0, 1)]))
    mean, _ = model.encode(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1)
    found, _ = encoded.moments([1, 1, 1, 1], np.array([0.0, 0.49, 0.5, 0.99]))
    assert np.allclose(found, mean[[0, 0, 1, 1]], atol=1e-5)
    text = encoded.text([0, 0, 0, None, 0], np.array([0.0, 0.4, 0.7, 0.5, 0.99]))["encoder_hidden_states"]
    expected = model.embed(["one", "two", "", "", ""])["encoder_hidden_states"]
    assert torch.allclose(text, expected, atol=1e-5)


def test_images_of_several_sizes_are_encoded_together(split, model, tmp_path):
    shapes = [(64, 64), (32, 96), (96, 32)]

    def pixels(index, view=0):
        return np.resize(split.pixels(index), (*shapes[index % 3], 3))

    encoded = encode(dataclasses.replace(split, pixels=pixels, fingerprint="sizes"), model, tmp_path)
    for item in range(6):
        height, width = shapes[item % 3]
        mean, _ = encoded.moments([item])
        expected, _ = model.encode(torch.from_numpy(pixels(item)).permute(2, 0, 1)[None].float() / 127.5 - 1)
        assert mean.shape[2:] == (height // 4, width // 4)
        assert np.allclose(mean, expected, atol=1e-4)


def test_captions_that_are_cut_are_counted(split, model, tmp_path, caplog):
    long = dataclasses.replace(split, captions=[("a red apple " * 20,), ("heart " * 30, "x"), *split.captions[2:]])
    number = len({caption for captions in long.captions for caption in captions})
    with caplog.at_level("WARNING", logger="t2i.data.latent_cache"):
        encode(split, model, tmp_path)
        assert not caplog.records
        encode(long, model, tmp_path)
    message = f"2 of {number} captions are longer than the 24 tokens that the text encoder takes; they are truncated"
    assert [record.getMessage() for record in caplog.records] == [message]


@pytest.mark.parametrize(
    ("size", "text"), [(999, "999 B"), (1200, "1.2 kB"), (49_300, "49.3 kB"), (1.2e6, "1.2 MB"), (3.44e9, "3.44 GB")]
)
def test_sizes_are_readable(size, text):
    assert readable(size) == text


def test_the_framing_is_that_of_the_view(split, model, tmp_path):
    framed = dataclasses.replace(several_views(split), framing=lambda index, view: (9, 8, index, view, 64, 64))
    encoded = encode(framed, model, tmp_path)
    found = encoded.framing([3, 3, 0], np.array([0.0, 0.5, 0.9]))
    assert found.tolist() == [[9, 8, 3, 0, 64, 64], [9, 8, 3, 1, 64, 64], [9, 8, 0, 1, 64, 64]]
    whole = encode(split, model, tmp_path / "whole")
    assert whole.framing([1]).tolist() == [[64, 64, 0, 0, 64, 64]]
