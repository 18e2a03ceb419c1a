"""Damaged files of a cache are made anew, with a warning that names them; what they held is never used."""

import errno
import hashlib
import json
import logging
import shutil
import subprocess
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from helpers import packing
from helpers.image_folders import as_embedded_parquet, as_jsonl, from_folder, from_hub
from helpers.not_files import endless, huge, pipe
from safetensors import safe_open
from safetensors.torch import load_file, save

from t2i.config import ConfigError
from t2i.data.latent_cache import encode
from t2i.data.openmoji import openmoji
from t2i.models.stable_diffusion import load

pytestmark = pytest.mark.slow


def empty(file):
    file.write_bytes(b"")


def torn(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def garbage(file):
    file.write_bytes(np.random.default_rng(0).bytes(5000))


def nul(file):
    file.write_bytes(bytes(file.stat().st_size))


def half_nul(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def flipped(file):
    """One bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def of_another_shape(file):
    file.write_text("[]")


def number(file):
    file.write_text("3")


def nested(file):
    file.write_text("[" * 200_000)


DAMAGES = [empty, torn, garbage, nul, half_nul, flipped, of_another_shape, number, nested]


@pytest.fixture(scope="module")
def split():
    return openmoji(64, {"food": 1.0}).validation


@pytest.fixture(scope="module")
def model(small_pipeline):
    return load(str(small_pipeline))


@pytest.fixture(scope="module")
def filled(split, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    return folder, state(encode(split, model, folder), split)


@pytest.fixture
def cache(filled, tmp_path):
    shutil.copytree(filled[0], tmp_path / "cache")
    return tmp_path / "cache"


def state(encoded, split):
    """What a run reads, with the key."""
    items = list(range(len(split)))
    text = encoded.text(items)["encoder_hidden_states"].numpy().tobytes()
    return encoded.fingerprint, encoded.moments(items)[0].tobytes(), encoded.moments(items)[1].tobytes(), text


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("pattern", ["images-*/*.safetensors", "captions-*/*.safetensors", "*/checked.json"])
def test_damaged_encodings_are_computed_again(damage, pattern, cache, filled, split, model, caplog):
    damaged = list(cache.glob(f"encodings/{pattern}"))
    for file in damaged:
        damage(file)
    with caplog.at_level(logging.WARNING):
        assert state(encode(split, model, cache), split) == filled[1]
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
        f"{file}, a file of the cache, is damaged" for file in sorted(damaged, reverse=True)
    ]
    caplog.clear()
    assert state(encode(split, model, cache), split) == filled[1]
    assert not caplog.records


def test_a_copied_cache_is_used(cache, filled, split, model):
    packs = {file: file.stat().st_mtime_ns for file in cache.glob("encodings/*/*.safetensors")}
    assert state(encode(split, model, cache), split) == filled[1]
    assert {file: file.stat().st_mtime_ns for file in cache.glob("encodings/*/*.safetensors")} == packs


@pytest.mark.parametrize("named_as", ["itself", "the file that it replaces"])
def test_the_encodings_of_other_encoders_are_not_mistaken(named_as, cache, filled, split, model, caplog):
    class Other:
        image_content = ("another autoencoder",)

        def __getattr__(self, name):
            return getattr(model, name)

        def encode(self, pixels):
            mean, std = model.encode(pixels)
            return mean + 1, std

    encode(split, Other(), cache)
    folders = {file.parent for file in cache.glob("encodings/images-*/*.safetensors")}
    (file,) = (cache / "encodings").glob(f"{next(filled[0].glob('encodings/images-*')).name}/*.safetensors")
    (other,) = (folders - {file.parent}).pop().glob("*.safetensors")
    target = file if named_as != "itself" else file.with_name(other.name)
    file.unlink()
    shutil.copyfile(other, target)
    assert state(encode(split, model, cache), split) == filled[1]
    assert f"{target}, a file of the cache, is damaged" in caplog.text


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_hashes_are_computed_again(damage, cache, filled, split, model, caplog):
    for file in cache.glob("hashes/*[0-9a-f]"):
        if damage is not flipped:  # which may be another digit: then encodings are not found
            damage(file)
    assert state(encode(split, model, cache), split) == filled[1]
    assert damage is flipped or "hashes" in caplog.text


@pytest.mark.parametrize("pattern", ["encodings/*/*.safetensors", "encodings/*/checked.json", "hashes/*[0-9a-f]"])
def test_a_folder_in_the_place_of_a_file_is_named(pattern, cache, split, model):
    for file in [file for file in cache.glob(pattern) if file.suffix != ".lock"]:
        file.unlink()
        file.mkdir()
    with pytest.raises(ConfigError, match=r"cache/.*; delete it"):
        encode(split, model, cache)


def replaced(name, change):
    """A change of a pack's tensors that replaces one of them."""
    return lambda tensors: tensors | {name: change(tensors[name])}


FORGED = {
    "ends beyond the values": replaced("moments.end", lambda ends: ends * 1000),
    "ends that go back": replaced("moments.end", lambda ends: ends.flip(0)),
    "negative ends": replaced("moments.end", lambda ends: -ends),
    "fractional ends": replaced("moments.end", lambda ends: ends.float()),
    "too few ends": replaced("moments.end", lambda ends: ends[:1]),
    "shapes of terabytes": replaced("moments.shape", lambda shapes: shapes * 100_000),
    "shapes that overflow": replaced("moments.shape", lambda shapes: shapes * 0 + 2**40),
    "negative shapes": replaced("moments.shape", lambda shapes: -shapes),
    "empty shapes": replaced("moments.shape", lambda shapes: shapes * 0),
    "shapes of no dimension": replaced("moments.shape", lambda shapes: shapes[:, :0].contiguous()),
    "shapes in a row": replaced("moments.shape", lambda shapes: shapes[:, 0].contiguous()),
    "values in a table": replaced("moments", lambda values: values[: len(values) // 2 * 2].view(-1, 2).contiguous()),
    "values of a kind that NumPy lacks": replaced("moments", lambda values: values.to(torch.float8_e4m3fn)),
    "keys in numbers": replaced(".key", lambda keys: keys.long()),
    "keys that are too short": replaced(".key", lambda keys: keys[:, :3].contiguous()),
    "no keys": lambda tensors: {name: tensor for name, tensor in tensors.items() if name != ".key"},
    "no ends": lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "moments.end"},
}


def forge(file, change):
    """Replace a pack by another one, under the name that it then has to have."""
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
    content = save(change(load_file(file)), about)
    file.unlink()
    file = file.with_name(f"000000-{hashlib.sha256(content).hexdigest()[:32]}.safetensors")
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("name", FORGED)
def test_a_pack_whose_numbers_contradict_each_other_is_made_anew(name, cache, filled, split, model, caplog):
    (file,) = cache.glob("encodings/images-*/*.safetensors")
    forged = forge(file, FORGED[name])
    assert state(encode(split, model, cache), split) == filled[1]
    assert f"{forged}, a file of the cache, is damaged" in caplog.text


@pytest.mark.parametrize("name", ["moments", "framing"])
def test_a_pack_of_something_else_is_named(name, cache, split, model):
    (file,) = cache.glob("encodings/images-*/*.safetensors")
    forged = forge(file, lambda tensors: {key: tensors[key] for key in tensors if key.partition(".")[0] != name})
    with pytest.raises(ConfigError, match=f"{forged} holds something else than encoded images; delete it"):
        encode(split, model, cache)


@pytest.mark.parametrize("kind", [pipe, endless, huge])
@pytest.mark.parametrize("pattern", ["encodings/*/*.safetensors", "encodings/*/checked.json", "hashes/*[0-9a-f]"])
def test_nothing_waits_for_a_file_of_the_cache(kind, pattern, cache, filled, split, model):
    for file in cache.glob(pattern):
        kind(file)
    if kind is huge:
        assert state(encode(split, model, cache), split) == filled[1]
    else:
        with pytest.raises(ConfigError, match=r"cache/.* is a pipe or a device instead of a file of the cache"):
            encode(split, model, cache)


@pytest.mark.parametrize("name", [".pack.tmp", ".checked.json.tmp"])
def test_nothing_is_written_through_a_link_in_the_cache(name, cache, filled, split, model, tmp_path):
    (tmp_path / "mine").write_text("mine")
    for file in cache.glob("encodings/images-*/*.safetensors"):
        file.unlink()
        (file.parent / name).symlink_to(tmp_path / "mine")
    assert state(encode(split, model, cache), split) == filled[1]
    assert (tmp_path / "mine").read_text() == "mine"


def images_of(data):
    return data.train.fingerprint, data.validation.fingerprint


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_facts_of_a_folder_are_determined_again(damage, tmp_path, caplog):
    as_jsonl(tmp_path)
    before = images_of(from_folder(tmp_path))
    (memo,) = Path(datasets.config.HF_DATASETS_CACHE).glob("t2i/*.json")
    damage(memo)
    assert images_of(from_folder(tmp_path)) == before
    assert f"{memo}, a file of the cache, is damaged" in caplog.text


@pytest.mark.parametrize("value", [[], None, 3, {}, {"state": []}])
def test_facts_of_another_shape_are_determined_again(value, tmp_path):
    as_jsonl(tmp_path)
    before = images_of(from_folder(tmp_path))
    (memo,) = Path(datasets.config.HF_DATASETS_CACHE).glob("t2i/*.json")
    facts = json.loads(memo.read_text())
    del facts[""]  # as earlier versions wrote it
    memo.write_text(json.dumps(facts | {"a.png": value}))
    assert images_of(from_folder(tmp_path)) == before


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_damaged_indices_of_shards_are_made_again(damage, suffix, tmp_path, caplog):
    shards, cache = packing.write_shards(tmp_path / "shards", "tar", 3, 3), tmp_path / "cache"

    def read():
        data = packing.from_files(shards, cache)
        index = data.train.index
        return [index.item(shard, number) for shard in range(2) for number in range(3)], data.validation.fingerprint

    before = read()
    files = list(cache.glob(f"shards/*.{suffix}"))
    assert len(files) == 3
    for file in files:
        damage(file)
    assert read() == before
    assert all(f"{file}, a file of the cache, is damaged" in caplog.text for file in files)
    caplog.clear()
    assert read() == before
    assert not caplog.records


@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_a_folder_in_the_place_of_an_index_is_named(suffix, tmp_path):
    shards, cache = packing.write_shards(tmp_path / "shards", "tar", 3, 3), tmp_path / "cache"
    packing.from_files(shards, cache)
    for file in cache.glob(f"shards/*.{suffix}"):
        file.unlink()
        file.mkdir()
    with pytest.raises(ConfigError, match=r"cache/.*; delete it"):
        packing.from_files(shards, cache)


@pytest.mark.parametrize("damage", [empty, torn, garbage, nul])
def test_damaged_files_of_the_datasets_cache_are_made_again(damage, tmp_path, caplog):
    as_embedded_parquet(tmp_path)
    before = images_of(from_hub(tmp_path))
    for file in Path(datasets.config.HF_DATASETS_CACHE).rglob("*.arrow"):
        damage(file)
    assert images_of(from_hub(tmp_path)) == before
    assert "is damaged" in caplog.text


@pytest.mark.parametrize("damage", [empty, torn, garbage, nul])
def test_damaged_settings_of_the_datasets_cache_are_named(damage, tmp_path):
    as_embedded_parquet(tmp_path)
    before = images_of(from_hub(tmp_path))
    for file in Path(datasets.config.HF_DATASETS_CACHE).rglob("dataset_info.json"):
        damage(file)
    try:
        assert images_of(from_hub(tmp_path)) == before
    except ConfigError as error:
        assert "`datasets` cache in" in str(error)  # noqa: PT017


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of the given size and options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip(f"this machine can't mount a tmpfs ({done.stderr.decode().strip()})")
        return folder

    yield mount
    while folder.is_mount():
        subprocess.run(["umount", "-l", folder], check=True)


def refuses(split, model, cache_dir, match):
    class Counting:
        images = 0

        def __getattr__(self, name):
            return getattr(model, name)

        def encode(self, pixels):
            Counting.images += len(pixels)
            return model.encode(pixels)

    with pytest.raises(ConfigError, match=match):
        encode(split, Counting(), cache_dir)
    return Counting.images


def test_a_read_only_cache_dir_is_named_before_anything_is_encoded(small_disk, split, model):
    refused = r"cache_dir: the cache can't be written in .*disk.* \(Read-only file system\); .* use another cache_dir"
    assert refuses(split, model, small_disk("ro"), refused) == 0


def test_a_full_cache_dir_is_named(small_disk, split, model, monkeypatch):
    folder = small_disk("size=64k")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 0, 10**12))
    refuses(split, model, folder, r"cache_dir: the cache can't be written in .*disk.* \(.*No space left on device.*\)")


def test_a_cache_dir_below_a_file_is_named(split, model, tmp_path):
    (tmp_path / "file").write_text("")
    assert refuses(split, model, tmp_path / "file" / "cache", r"cache_dir: the cache can't be written in .*file") == 0


def test_a_cache_that_denies_permission_is_named(cache, split, model, monkeypatch):
    read = Path.read_text

    def denied(self, *arguments, **options):
        if self.is_relative_to(cache):
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return read(self, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", denied)  # root may read everything
    with pytest.raises(ConfigError, match=r"cache/hashes/.* can't be read \(Permission denied\); delete it"):
        encode(split, model, cache)
