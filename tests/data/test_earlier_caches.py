"""Encodings that earlier versions stored, one file for a whole list, are copied instead of made again."""

import hashlib
import json

import datasets
import numpy as np
import pytest
import torch
from helpers.encoders import Encoders, split_of, visible

from t2i.data.latent_cache import encode

SPLIT = split_of([(i, f"caption {i}" + " more" * i) for i in range(10)])
DAMAGES = {
    "empty": lambda content: b"",
    "torn": lambda content: content[: len(content) // 2],
    "nul": lambda content: bytes(len(content)),
    "half nul": lambda content: content[: len(content) // 2] + bytes(len(content) - len(content) // 2),
    "flipped": lambda content: content[:1500] + bytes([content[1500] ^ 1]) + content[1501:],
}


def write(file, columns):
    """A file as an earlier version wrote it, with its seal."""
    number = len(next(iter(columns.values())))
    datasets.Dataset.from_dict({"input": list(range(number))}).map(
        lambda rows: {name: [values[row] for row in rows] for name, values in columns.items()},
        input_columns=["input"],
        batched=True,
        remove_columns=["input"],
        cache_file_name=str(file),
        new_fingerprint=file.stem.rpartition("-")[2],
    )
    content = {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "state": [0, 0, 0]}
    checksum = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    file.with_suffix(".json").write_text(json.dumps({"": checksum, **content}))


def earlier(folder):
    """The encodings of the split, with a mark by which they are known: 1 is added to the latents, 2 to the captions."""
    now, model = encode(SPLIT, Encoders(), folder / "now"), Encoders()
    mean, std = now.moments(list(range(10)))
    moments = np.stack([mean + 1, std], axis=1).reshape(10, -1)
    framing = [[16, 16, 0, 0, 16, 16]] * 10
    text = model.embed([*sorted(caption for (caption,) in SPLIT.captions), ""])
    columns = {name: list(tensor.flatten(1).numpy()) for name, tensor in text.items()}
    columns["encoder_hidden_states"] = [values + 2 for values in columns["encoder_hidden_states"]]
    columns |= {f"{name}.shape": [list(tensor.shape[1:])] * 11 for name, tensor in text.items()}
    (folder / "encodings").mkdir()
    keys = now.images_key, now.fingerprint.removeprefix(now.images_key)
    files = [
        folder / "encodings" / f"{kind}-{key}.arrow" for kind, key in zip(("pictures", "captions"), keys, strict=True)
    ]
    write(files[0], {"moments": list(moments), "shape": [list(mean.shape[1:])] * 10, "framing": framing})
    write(files[1], columns)
    return (
        files,
        torch.from_numpy(mean + 1),
        torch.stack([torch.as_tensor(row) for row in columns["encoder_hidden_states"]]),
    )


@pytest.mark.parametrize("sealed", [True, False])
def test_they_are_copied_once_and_nothing_is_encoded(sealed, tmp_path, caplog):
    files, mean, hidden = earlier(tmp_path)
    before = {file: file.read_bytes() for file in files}
    if not sealed:
        for file in files:
            file.with_suffix(".json").unlink()
    model = Encoders()
    with caplog.at_level("INFO", logger="t2i.data.latent_cache"):
        encoded = encode(SPLIT, model, tmp_path)
    assert model.counts() == (0, 0)
    assert [f"then you can delete {file} (" in caplog.text for file in files] == [True, True]
    assert torch.equal(torch.from_numpy(encoded.moments(list(range(10)))[0]), mean)
    text = encoded.text([*range(10), None])
    expected = visible({**text, "encoder_hidden_states": hidden.view(text["encoder_hidden_states"].shape)})
    assert torch.equal(text["encoder_hidden_states"], expected["encoder_hidden_states"])
    assert {file: file.read_bytes() for file in files} == before
    for file in files:
        file.unlink()
    assert torch.equal(torch.from_numpy(encode(SPLIT, model, tmp_path).moments([3])[0]), mean[[3]])
    assert model.counts() == (0, 0)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", [0, 1])
def test_damaged_ones_are_named_and_encoded_anew(kind, damage, tmp_path, caplog):
    files, *_ = earlier(tmp_path)
    files[kind].write_bytes(DAMAGES[damage](files[kind].read_bytes()))
    model = Encoders()
    encode(SPLIT, model, tmp_path)
    assert model.counts() == ((10, 0), (0, 11))[kind]
    assert f"{files[kind]}, a file of the cache, is damaged" in caplog.text


def test_another_list_does_not_use_them(tmp_path):
    earlier(tmp_path)
    model = Encoders()
    encode(split_of([(1, "one")]), model, tmp_path)
    assert model.counts() == (1, 2)
