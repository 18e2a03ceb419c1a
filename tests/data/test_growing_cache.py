"""Of a data set that changes, what is new is encoded, and everything that is read is as if all had been encoded now."""

import threading

import numpy as np
import pytest
import torch
from helpers.encoders import Encoders, split_of, visible
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t2i.config import ConfigError
from t2i.data import cache_files, filling, pack_folder
from t2i.data.latent_cache import encode

FOLDER = [(i, f"caption {i}") for i in range(150)]  # images that differ


def read(encoded, captions=True):
    """All that a run can read."""
    items = list(range(len(encoded)))
    text = encoded.text([*items, None]) if captions else {}
    return [*map(torch.from_numpy, encoded.moments(items)), encoded.framing(items), *text.values()]


def assert_fresh(encoded, split, model):
    """Each tensor is what the model says now, to the bit."""
    pixels = torch.from_numpy(np.stack([split.pixels(i) for i in range(len(split))])).permute(0, 3, 1, 2)
    captions = [*(caption for (caption,) in split.captions), ""]
    mean, std = model.encode(pixels.float() / 127.5 - 1)
    expected = [
        mean,
        std,
        torch.tensor([[16, 16, 0, 0, 16, 16]] * len(split)),
        *visible(model.embed(captions)).values(),
    ]
    for found, now in zip(read(encoded), expected, strict=True):
        assert torch.equal(found, now)
        assert found.dtype == now.dtype


def test_ten_new_images_are_ten_images_and_their_captions(tmp_path):
    model, folder = Encoders(), [(i, f"caption {i}") for i in range(1010)]
    encode(split_of(folder[:1000]), model, tmp_path)
    assert model.counts() == (1000, 1001)  # and the empty caption
    encoded = encode(split_of(folder), model, tmp_path)
    assert model.counts() == (10, 10)
    assert_fresh(encoded, split_of(folder), model)


def test_a_changed_caption_is_one_caption(tmp_path):
    model = Encoders()
    encode(split_of(FOLDER), model, tmp_path)
    model.counts()
    changed = split_of([(0, "another caption"), *FOLDER[1:]])
    encoded = encode(changed, model, tmp_path)
    assert model.counts() == (0, 1)
    assert_fresh(encoded, changed, model)


def test_removing_and_reordering_encode_nothing(tmp_path):
    model = Encoders()
    encode(split_of(FOLDER), model, tmp_path)
    model.counts()
    for items in (FOLDER[::-1], FOLDER[40:50]):
        encoded = encode(split_of(items), model, tmp_path)
        assert model.counts() == (0, 0)
        assert_fresh(encoded, split_of(items), model)
        model.counts()


def test_equal_images_and_captions_are_encoded_once(tmp_path):
    model, items = Encoders(), [(1, "a"), (2, "a"), (1, "a"), (1, "b")]
    encoded = encode(split_of(items), model, tmp_path)
    assert model.counts() == (2, 3)
    assert_fresh(encoded, split_of(items), model)


def test_another_encoder_has_entries_of_its_own(tmp_path):
    first, second = Encoders(), Encoders(image_content=("another",), text_content=("another",))
    for model in (first, second):
        encode(split_of(FOLDER[:5]), model, tmp_path)
    assert first.counts() == second.counts() == (5, 6)


def test_without_an_identity_the_fingerprint_stands_for_each_image(tmp_path):
    model = Encoders()
    for items, images in ((FOLDER[:5], 5), (FOLDER[:5], 0), (FOLDER[:6], 6)):
        encode(split_of(items, identity=None), model, tmp_path)
        assert model.counts()[0] == images


def test_more_views_are_the_new_views(tmp_path):
    model = Encoders()
    encode(split_of(FOLDER[:5]), model, tmp_path)
    model.counts()
    encoded = encode(split_of(FOLDER[:5], views=3), model, tmp_path)
    assert model.counts() == (10, 0)
    mean, _ = encoded.moments([2, 2, 2], np.array([0.0, 0.4, 0.9]))
    assert np.unique(mean.reshape(3, -1), axis=1)[:, 0].tolist() == pytest.approx(
        [(v / 127.5 - 1) / 3 for v in (2, 3, 4)]
    )


VERSIONS = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from(["", "a", "b c", "b d", "e " * 11])), min_size=1, max_size=8
)


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    versions=st.lists(VERSIONS, min_size=1, max_size=5),
    masked=st.booleans(),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
)
def test_any_changes_encode_what_is_new_and_give_what_fresh_encodings_give(versions, masked, dtype, tmp_path_factory):
    cache, model, images, captions = tmp_path_factory.mktemp("cache"), Encoders(masked, dtype), set(), set()
    for items in versions:
        split = split_of(items)
        encoded = encode(split, model, cache)
        new_images, new_captions = {value for value, _ in items} - images, {text for _, text in items} | {""}
        assert sorted(model.images) == sorted(new_images)
        assert sorted(model.captions) == sorted(new_captions - captions)
        images, captions = images | new_images, captions | new_captions
        assert_fresh(encoded, split, model)
        model.counts()


# --- what ends an encoding -------------------------------------------------------------------------------------------


class Ending(Encoders):
    """Fails at the n-th batch of images."""

    def encode(self, pixels):
        if len(self.images) >= 3 * 64:
            raise KeyboardInterrupt
        return super().encode(pixels)


MANY = [(i % 200, f"caption {i}") for i in range(300)]
ONE_EACH = {"identity": lambda index, view: str(index)}


def test_an_interrupted_encoding_goes_on_where_it_was(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        encode(split_of(MANY, **ONE_EACH), Ending(), tmp_path)
    model = Encoders()
    encoded = encode(split_of(MANY, **ONE_EACH), model, tmp_path)
    assert model.counts() == (300 - 3 * 64, 301)
    assert_fresh(encoded, split_of(MANY), model)


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(filling, "PACK_BYTES", 1)  # a pack for every image
    publish, packs = cache_files.publish, []

    def full(temporary, file):
        if len(packs) == 30:
            raise OSError(28, "No space left on device")
        packs.append(file)
        publish(temporary, file)

    monkeypatch.setattr(cache_files, "publish", full)
    with pytest.raises(ConfigError, match=r"cache_dir: the cache can't be written in .* \(No space left on device\)"):
        encode(split_of(MANY, **ONE_EACH), Encoders(), tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))
    monkeypatch.undo()
    model = Encoders()
    encode(split_of(MANY, **ONE_EACH), model, tmp_path)
    assert model.counts() == (270, 301)


def test_what_is_stored_is_not_kept_in_memory(tmp_path, monkeypatch):
    """Packs are written when they are large enough: at most one, and a batch, is held."""
    monkeypatch.setattr(filling, "PACK_BYTES", 2000)
    encode(split_of(MANY, **ONE_EACH), Encoders(), tmp_path)
    sizes = [file.stat().st_size for file in tmp_path.glob("encodings/images-*/*.safetensors")]
    assert len(sizes) > 3
    assert max(sizes) < 2 * 2000 + 2000  # values, and what they are found by


# --- several processes -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_runs_with_data_sets_that_overlap_can_encode_at_once(tmp_path, monkeypatch):
    """Some entries may be stored twice; everyone reads those that came first."""
    monkeypatch.setattr(filling, "PACK_BYTES", 500)
    splits = [split_of(FOLDER[start : start + 60]) for start in (0, 20, 40, 90)]
    failures = []

    def work(split):
        try:
            assert_fresh(encode(split, Encoders(), tmp_path), split, Encoders())
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(split,)) for split in splits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    model = Encoders()
    encoded = encode(split_of(FOLDER), model, tmp_path)
    assert model.counts() == (0, 0)
    assert_fresh(encoded, split_of(FOLDER), model)


def test_entries_that_were_made_twice_are_read_from_the_first_pack(tmp_path, monkeypatch):
    split = split_of(FOLDER[:3])
    folder = encode(split, Encoders(), tmp_path).latents.packs[0].file.parent
    first = pack_folder.PackFolder(folder, folder.name.partition("-")[2])
    monkeypatch.setattr(filling, "PACK_BYTES", 1)
    filling.fill(
        first, [pack_folder.key_of(split.identify(0, 0))], [0], lambda rows: [{"moments": torch.ones(3)}], 1, "x"
    )
    model = Encoders()
    assert_fresh(encode(split, model, tmp_path), split, Encoders())
    assert model.counts() == (0, 0)


# --- what is said ----------------------------------------------------------------------------------------------------


def test_how_much_there_is_to_do_is_said_before_and_while_it_is_done(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(filling, "SAY_EVERY", 0)
    encode(split_of(FOLDER[:140]), Encoders(), tmp_path)
    caplog.clear()
    with caplog.at_level("INFO", logger="t2i.data"):
        encode(split_of(FOLDER), Encoders(), tmp_path)
    (images,), (captions,) = (tmp_path.glob(f"encodings/{what}-*") for what in ("images", "captions"))
    said = [record.getMessage().partition("; ")[0] for record in caplog.records]
    assert said == [
        f"encoding 10 of 150 images into {images}",
        "10 images need about 800 B",  # 2 × 2 × 2 numbers of 4 bytes, and six of 8
        "encoded 10 of 10 images",
        f"encoding 10 of 151 captions into {captions}",
        "10 captions need about 320 B",  # two tokens of 4 numbers in bfloat16, and of the mask
        "encoded 8 of 10 captions",
        "encoded 10 of 10 captions",
    ]
