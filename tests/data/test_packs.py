"""Packs return what was put into them, to the bit."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from t2i.config import ConfigError
from t2i.data.pack_folder import PackFolder, key_of
from t2i.data.packs import Pack, packed

FLOATS = st.one_of(st.floats(width=32, allow_nan=False), st.sampled_from([0.0, -0.0, 1.0, 1.5, 1 / 3]))
TENSORS = st.one_of(
    arrays.arrays(np.float32, arrays.array_shapes(max_dims=3, max_side=4), elements=FLOATS),
    arrays.arrays(np.int64, arrays.array_shapes(max_dims=2, max_side=4), elements=st.integers(-(2**40), 2**40)),
)


def stored(folder, *batches):
    """The folder with a pack for each batch of tensors, and the keys."""
    packs, keys = PackFolder(folder, "encoder"), []
    for number, tensors in enumerate(batches):
        own = [key_of(f"{number} {i}") for i in range(len(tensors))]
        packs.add({key: {"x": packed(torch.as_tensor(tensor))} for key, tensor in zip(own, tensors, strict=True)})
        keys += own
    return packs, keys


def bits(tensor):
    return tensor.numpy().view(np.uint8)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(TENSORS, st.integers(0, 5))
def test_every_tensor_comes_back(tmp_path_factory, tensor, zeros):
    others = [np.zeros_like(tensor), np.concatenate([tensor[:1], np.zeros_like(tensor[1:])])]
    folder, keys = stored(tmp_path_factory.mktemp("packs"), [tensor, *others], [tensor])
    entries = folder.find([*keys, *keys[:zeros]])
    expected = torch.as_tensor(np.stack([tensor, *others, tensor, *[tensor, *others, tensor][:zeros]]))
    found = entries.read("x", range(len(entries)))
    assert found.dtype == expected.dtype
    assert np.array_equal(bits(found), bits(expected))
    assert entries.shapes("x").tolist() == [list(tensor.shape)] * len(entries)


@pytest.mark.parametrize(
    ("values", "nbytes"),
    [
        ([1.5, -2.0, 0.0, 0.0], 4),  # bfloat16 holds them; zeros at the end take no space
        ([1 / 3, 0.0, 2.0], 12),  # it does not hold a third
        ([0.0, 0.0], 0),
        ([0, 3, 0], 16),  # integers
        ([-0.0, 0.0], 2),
    ],
)
def test_no_more_is_stored_than_is_needed(values, nbytes, tmp_path):
    folder, keys = stored(tmp_path, [torch.tensor(values)])
    assert folder.find(keys).nbytes() == nbytes
    assert folder.find(keys * 3).nbytes() == nbytes


def test_what_was_not_stored_is_missing(tmp_path):
    folder, (first, second) = stored(tmp_path, [torch.ones(2)], [torch.ones(2)])
    assert folder.find([key_of("other"), second, first, key_of("another")]).missing == [0, 3]


def test_entries_of_several_shapes_in_a_batch_are_refused(tmp_path):
    folder, keys = stored(tmp_path, [torch.ones(2), torch.ones(3)])
    entries = folder.find(keys)
    assert [len(entries.read("x", [place])[0]) for place in (0, 1)] == [2, 3]
    with pytest.raises(ConfigError, match="x has several shapes in a batch"):
        entries.read("x", [0, 1])


def test_packs_are_mapped_and_survive_their_deletion(tmp_path):
    """Another process that gets the entries maps the files itself."""
    folder, keys = stored(tmp_path, [torch.ones(1000, 1000) / 3])
    entries = folder.find(keys)
    assert len(pickle.dumps(entries)) < 10_000
    assert torch.equal(pickle.loads(pickle.dumps(entries)).read("x", [0]), entries.read("x", [0]))
    entries.packs[0].file.unlink()
    assert entries.read("x", [0]).sum() == pytest.approx(1e6 / 3)


@pytest.mark.slow
def test_many_packs_need_no_open_files(tmp_path):
    folder, keys = stored(tmp_path, *[[torch.full((3,), i)] for i in range(50)])
    entries = folder.find(keys)
    with open("/dev/null") as file:
        assert file.fileno() < 50
    assert entries.read("x", range(50))[:, 0].tolist() == list(range(50))


def test_a_pack_is_a_file_of_safetensors(tmp_path):
    _, keys = stored(tmp_path, [torch.ones(2)])
    (file,) = tmp_path.glob("000000-*.safetensors")
    assert Pack(file).keys == keys
