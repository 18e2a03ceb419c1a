"""The encoding cache: pictures and captions pass the frozen encoders once, for all runs.

Content-addressed: the key is a hash of the encoders' weights and of the data, never of learning rate, loss or output
folder, so the runs of a sweep share it and a changed VAE can't be mistaken for the old one. Latents are kept as mean
and standard deviation and sampled at each use; captions are dropped at each use, too.
"""

import hashlib
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

if TYPE_CHECKING:
    from t2i.captioned import Split

log = logging.getLogger(__name__)
FORMAT = "2"  # of what is stored, and of how pictures are prepared; part of the key
BATCH, BATCH_PIXELS = 64, 2**20  # encoded at once, at most


class Encoded:
    """A split behind the encoders, memory-mapped.

    latents: a row per picture: `moments` (mean, then standard deviation, flat), their `shape`, the `caption`'s row.
    captions: a row per distinct caption, the empty one last; a column per output of the model's `embed`, and its shape.
    """

    def __init__(self, latents: datasets.Dataset, captions: datasets.Dataset, pictures_key: str, captions_key: str):
        self.latents, self.captions = latents, captions
        self.pictures_key, self.fingerprint = pictures_key, pictures_key + captions_key
        self.caption_rows = _column(latents[:], "caption").astype(np.int64)
        self.embeddings = [name for name in captions.column_names if not name.endswith(".shape")]

    def __len__(self) -> int:
        return len(self.latents)

    def moments(self, items: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the latents, each [B, C, h, w] float32."""
        rows = self.latents[items]
        moments = _column(rows, "moments").reshape(len(items), 2, *rows["shape"][0].as_py())
        return moments[:, 0], moments[:, 1]

    def text(self, items: list[int | None]) -> dict[str, Tensor]:
        """Embedded captions of the items; None stands for the empty caption."""
        rows = self.captions[[-1 if item is None else self.caption_rows[item] for item in items]]
        shapes = {name: rows[f"{name}.shape"][0].as_py() for name in self.embeddings}
        return {
            name: torch.from_numpy(_column(rows, name).reshape(len(items), *shape).copy())
            for name, shape in shapes.items()
        }


def _column(rows: pa.Table, name: str) -> np.ndarray:
    """All values of a column in one flat array; lists are joined."""
    values = rows.column(name).combine_chunks()
    while pa.types.is_nested(values.type):
        values = values.flatten()
    return values.to_numpy()


def hash_of(*parts: nn.Module | PreTrainedTokenizerBase | str) -> str:
    """A hash of networks (weights and settings), tokenizers and texts, 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, nn.Module):
            for name, tensor in part.state_dict().items():
                digest.update(name.encode())
                digest.update(tensor.contiguous().cpu().view(-1).view(torch.uint8).numpy())
        digest.update(_settings(part).encode())
    return digest.hexdigest()[:32]


def _settings(part: nn.Module | PreTrainedTokenizerBase | str) -> str:
    """What is set in a part that changes its output: not where its weights lay, or which version wrote them."""
    if isinstance(part, str):
        return part
    if isinstance(part, PreTrainedTokenizerBase):
        rules = json.loads(part.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}  # set by each call
        return json.dumps([rules, part.model_max_length, part.pad_token])
    config = part.config if isinstance(part.config, Mapping) else part.config.to_dict()
    aside = ("dtype", "torch_dtype", "transformers_version", "architectures")
    return repr(sorted((k, v) for k, v in config.items() if not k.startswith("_") and k not in aside))


def encode(split: "Split", model, cache_dir: str | Path) -> Encoded:
    """The split's latents and caption embeddings, from the cache where they are in it."""
    folder = Path(cache_dir).expanduser() / "encodings"
    distinct = sorted(set(split.captions) - {""})
    row_of = {caption: row for row, caption in enumerate([*distinct, ""])}

    def encode_pictures(indices: list[int]) -> dict:
        pixels = np.stack([split.pixels(index) for index in indices])
        mean, std = model.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1)
        moments = torch.stack([mean, std], dim=1).cpu()
        return {
            "moments": moments.flatten(1).numpy(),
            "shape": [list(mean.shape[1:])] * len(indices),
            "caption": [row_of[split.captions[index]] for index in indices],
        }

    def embed_captions(captions: list[str]) -> dict:
        columns = {}
        for name, tensor in model.embed(captions).items():
            columns[name] = tensor.cpu().flatten(1).numpy()
            columns[f"{name}.shape"] = [list(tensor.shape[1:])] * len(captions)
        return columns

    pictures_key = hash_of(FORMAT, model.vae, split.fingerprint)
    captions_key = hash_of(FORMAT, *model.text_parts, json.dumps(distinct))
    height, width, _ = split.pixels(0).shape
    batch = max(1, min(BATCH, BATCH_PIXELS // (height * width)))
    indices = list(range(len(split)))
    latents = _stored(folder / f"pictures-{pictures_key}", indices, encode_pictures, batch, "pictures")
    captions = _stored(folder / f"captions-{captions_key}", [*distinct, ""], embed_captions, BATCH, "captions")
    return Encoded(latents, captions, pictures_key, captions_key)


def _stored(path: Path, inputs: list, encode_batch, batch: int, what: str) -> datasets.Dataset:
    """The rows that `encode_batch` makes of the inputs: read from `path`, or else made, and put there whole."""
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_suffix(".arrow")
    with FileLock(path.with_suffix(".lock")):  # two runs that start at once encode once
        if not file.is_file():
            log.info("encoding %d %s into the cache %s", len(inputs), what, file)
        encoded = datasets.Dataset.from_dict({"input": inputs}).map(
            encode_batch,
            input_columns=["input"],
            batched=True,
            batch_size=batch,
            remove_columns=["input"],
            new_fingerprint=path.name.rpartition("-")[2],
            cache_file_name=str(file),
            desc=f"encoding {what}",
        )
    return encoded.with_format("arrow")
