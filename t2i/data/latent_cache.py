"""The encoding cache: images and captions pass through the frozen encoders once, for all runs.

Entries are content-addressed: the key is a hash of the encoders' weights and of the data, never of learning rate, loss
or output folder. So the runs of a sweep share the cache, and a changed VAE can't be mistaken for the old one. Latents
are stored as mean and standard deviation and sampled at each use; captions are dropped at each use, too.
"""

import errno
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from t2i.config import ConfigError
from t2i.data import row_files
from t2i.data.cache_files import CACHE_DIR, locked, unwritable
from t2i.data.fingerprints import hash_of
from t2i.data.splits import Split
from t2i.models.model import Model

log = logging.getLogger(__name__)
FORMAT = "4"  # of the stored columns, and of the preparation of images; part of the key
BATCH, BATCH_PIXELS = 64, 2**20  # images encoded at once, and pixels: at most

Columns = dict[str, np.ndarray | list]  # the values of a batch of rows, by column


class Encoded:
    """The encodings of a split, memory-mapped.

    latents: a row per view of an image: `moments` (mean, then standard deviation, flat), their `shape`, and `framing`,
    the six numbers that Stable Diffusion XL is conditioned on.
    captions: a row per distinct caption, the empty one last; a column per output of the model's `embed`, and its shape.
    caption_rows: the rows of each image's captions, one or more.
    """

    def __init__(
        self,
        latents: datasets.Dataset,
        captions: datasets.Dataset,
        caption_rows: Sequence[Sequence[int]],
        views: int,
        images_key: str,
        captions_key: str,
    ):
        self.latents, self.frames, self.captions = latents, latents.select_columns("framing"), captions
        self.images_key, self.fingerprint = images_key, images_key + captions_key
        self.caption_rows, self.views = caption_rows, views
        self.embeddings = [name for name in captions.column_names if not name.endswith(".shape")]

    def __len__(self) -> int:
        return len(self.caption_rows)

    def sizes(self) -> np.ndarray:
        """Height and width of each image's latents, [N, 2]."""
        shapes = _column(self.latents.select_columns("shape")[:], "shape").reshape(len(self), self.views, 3)
        return shapes[:, 0, 1:]

    def moments(self, items: list[int], draws: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the latents, each [B, C, h, w] float32.

        draws: in [0, 1), one for each item, to choose among its views; None chooses the first view.
        """
        rows = self.latents[self._views(items, draws)]
        moments = _column(rows, "moments").reshape(len(items), 2, *rows["shape"][0].as_py())
        return moments[:, 0], moments[:, 1]

    def framing(self, items: list[int], draws: np.ndarray | None = None) -> Tensor:
        """The size and crop conditioning of Stable Diffusion XL, [B, 6] integers (see t2i.data.preparation)."""
        rows = self.frames[self._views(items, draws)]
        return torch.from_numpy(_column(rows, "framing").reshape(len(items), 6).copy())

    def _views(self, items: list[int], draws: np.ndarray | None) -> list[int]:
        """The rows of the chosen views."""
        draws = np.zeros(len(items)) if draws is None else draws
        return [item * self.views + int(u * self.views) for item, u in zip(items, draws, strict=True)]

    def text(self, items: list[int | None], draws: np.ndarray | None = None) -> dict[str, Tensor]:
        """Embedded captions of the items, chosen by draws as views are; None means the empty caption."""
        draws = np.zeros(len(items)) if draws is None else draws
        of_items = [() if item is None else self.caption_rows[item] for item in items]
        rows = self.captions[[own[int(u * len(own))] if own else -1 for own, u in zip(of_items, draws, strict=True)]]
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


def batch_size(shape: tuple[int, ...]) -> int:
    """How many images of a shape [H, W, 3] are encoded at once."""
    height, width, _ = shape
    return max(1, min(BATCH, BATCH_PIXELS // (height * width)))


def encode_pixels(pixels: Tensor, model: Model) -> np.ndarray:
    """Mean and standard deviation of the latents of [B, H, W, 3] uint8, [B, 2, C, h, w]."""
    moments = []
    for part in pixels.split(batch_size(pixels.shape[1:])):
        mean, std = model.encode(part.permute(0, 3, 1, 2).float() / 127.5 - 1)
        moments.append(torch.stack([mean, std], dim=1).cpu().numpy())
    return np.concatenate(moments)


def encode(split: Split, model: Model, cache_dir: str | Path) -> Encoded:
    """The split's latents and caption embeddings: read from the cache, or else encoded and stored there.

    If all of them are in the cache, the weights of the autoencoder and the text encoders are not read.
    """
    folder = Path(cache_dir).expanduser() / "encodings"
    memory = folder.parent / "hashes"
    distinct = sorted({caption for captions in split.captions for caption in captions} - {""})
    row_of = {caption: row for row, caption in enumerate([*distinct, ""])}
    images_key = hash_of(FORMAT, *model.image_content, split.fingerprint, memory=memory)
    captions_key = hash_of(FORMAT, *model.text_content, json.dumps(distinct), memory=memory)
    views = list(range(len(split) * split.views))
    latents = _stored(
        folder / f"pictures-{images_key}",
        views,
        partial(_encode_views, split, model),
        lambda: batch_size(split.pixels(0).shape),
        "images",
    )
    captions = _stored(
        folder / f"captions-{captions_key}", [*distinct, ""], partial(_embed, model), lambda: BATCH, "captions"
    )
    caption_rows = [[row_of[caption] for caption in texts] for texts in split.captions]
    _warn_of_long(distinct, *model.limit)
    return Encoded(latents, captions, caption_rows, split.views, images_key, captions_key)


def _encode_views(split: Split, model: Model, views: list[int]) -> Columns:
    """The rows of `latents` for some views, numbered through all images of the split."""
    addresses = [divmod(view, split.views) for view in views]
    pixels = [split.pixels(*address) for address in addresses]
    moments: dict[int, np.ndarray] = {}
    for shape in {image.shape for image in pixels}:
        alike = [i for i, image in enumerate(pixels) if image.shape == shape]
        moments |= zip(alike, encode_pixels(torch.from_numpy(np.stack([pixels[i] for i in alike])), model), strict=True)
    if split.framing:
        framing = [list(split.framing(*address)) for address in addresses]
    else:
        framing = [[height, width, 0, 0, height, width] for height, width, _ in (image.shape for image in pixels)]
    return {
        "moments": [moments[i].reshape(-1) for i in range(len(views))],
        "shape": [list(moments[i].shape[1:]) for i in range(len(views))],
        "framing": framing,
    }


def _embed(model: Model, captions: list[str]) -> Columns:
    """The rows of `captions` for some captions."""
    columns: Columns = {}
    for name, tensor in model.embed(captions).items():
        columns[name] = tensor.cpu().flatten(1).numpy()
        columns[f"{name}.shape"] = [list(tensor.shape[1:])] * len(captions)
    return columns


def _warn_of_long(captions: list[str], tokenizer: PreTrainedTokenizerBase, longest: int) -> None:
    tokens = tokenizer(captions, truncation=False, verbose=False).input_ids if captions else []
    if too_long := sum(len(ids) > longest for ids in tokens):
        message = "%d of %d captions are longer than the %d tokens that the text encoder takes; they are truncated"
        log.warning(message, too_long, len(captions), longest)


def _stored(
    path: Path, inputs: list, encode_batch: Callable[[list], Columns], batch: Callable[[], int], what: str
) -> datasets.Dataset:
    """The rows that `encode_batch` makes of the inputs: read from `path`, or else computed and stored there.

    batch: asked for the batch size if there is something to encode.
    """
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    file = path.with_suffix(".arrow")
    with locked(file):  # of two runs that start at once, one encodes
        rows = row_files.read(file, len(inputs))
        if rows is None:
            if not os.access(file.parent, os.W_OK):
                raise unwritable(file.parent, PermissionError(errno.EACCES, "Permission denied"), CACHE_DIR)
            map_inputs = partial(
                datasets.Dataset.from_dict({"input": inputs}).map,
                _checking_space(encode_batch, len(inputs), what, file),
                input_columns=["input"],
                batched=True,
                batch_size=batch(),
                remove_columns=["input"],
                new_fingerprint=path.name.rpartition("-")[2],
                desc=f"encoding {what}",
            )
            row_files.write(file, lambda name: map_inputs(cache_file_name=name))
            rows = row_files.read(file, len(inputs))
    if rows is None:
        raise ConfigError(f"cache_dir: {file} could not be read back; use a cache_dir on another disk")
    return rows


def _checking_space(
    encode_batch: Callable[[list], Columns], number: int, what: str, file: Path
) -> Callable[[list], Columns]:
    """`encode_batch`, which after its first batch logs the size of all `number` rows; ConfigError if it is not free."""
    checked = False

    def encode(inputs: list) -> Columns:
        nonlocal checked
        columns = encode_batch(inputs)
        if not checked:
            checked = True
            values = (np.asarray(value) for column in columns.values() for value in column)
            needed = sum(value.nbytes for value in values) * number / len(inputs)
            free = shutil.disk_usage(file.parent).free
            log.info("encoding %d %s into the cache, about %s: %s", number, what, readable(needed), file)
            if needed > free:
                raise ConfigError(
                    f"cache_dir: {number} encoded {what} need {readable(needed)} in {file.parent}, where only "
                    f"{readable(free)} are free; use a cache_dir on a larger disk, or a smaller dataset.resolution"
                )
        return columns

    return encode


def readable(size: float) -> str:
    """A size in bytes with a decimal unit: 1.2 MB is 1,200,000."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} GB"
