"""The encoding cache: images and captions pass the frozen encoders once, for all runs.

Content-addressed: the key is a hash of the encoders' weights and of the data, never of learning rate, loss or output
folder, so the runs of a sweep share it and a changed VAE can't be mistaken for the old one. Latents are kept as mean
and standard deviation and sampled at each use; captions are dropped at each use, too.
"""

import json
import logging
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock
from torch import Tensor

from t2i.config import ConfigError
from t2i.data.fingerprints import hash_of

if TYPE_CHECKING:
    from t2i.data.splits import Split

log = logging.getLogger(__name__)
FORMAT = "4"  # of what is stored, and of how images are prepared; part of the key
BATCH, BATCH_PIXELS = 64, 2**20  # encoded at once, at most


class Encoded:
    """A split behind the encoders, memory-mapped.

    latents: a row per view of an image: `moments` (mean, then standard deviation, flat), their `shape`, and `framing`,
    the six numbers that Stable Diffusion XL is told of it.
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

        draws: in [0, 1), one for each item, to choose among its views; None is the first of each.
        """
        rows = self.latents[self._views(items, draws)]
        moments = _column(rows, "moments").reshape(len(items), 2, *rows["shape"][0].as_py())
        return moments[:, 0], moments[:, 1]

    def framing(self, items: list[int], draws: np.ndarray | None = None) -> Tensor:
        """What Stable Diffusion XL is told of the views, [B, 6] integers (see t2i.data.images)."""
        rows = self.frames[self._views(items, draws)]
        return torch.from_numpy(_column(rows, "framing").reshape(len(items), 6).copy())

    def _views(self, items: list[int], draws: np.ndarray | None) -> list[int]:
        """The rows of the chosen views."""
        draws = np.zeros(len(items)) if draws is None else draws
        return [item * self.views + int(u * self.views) for item, u in zip(items, draws, strict=True)]

    def text(self, items: list[int | None], draws: np.ndarray | None = None) -> dict[str, Tensor]:
        """Embedded captions of the items, chosen as views are; None stands for the empty caption."""
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


def at_once(shape: tuple[int, ...]) -> int:
    """How many images of a shape [H, W, 3] are encoded at once."""
    height, width, _ = shape
    return max(1, min(BATCH, BATCH_PIXELS // (height * width)))


def encode_pixels(pixels: Tensor, model) -> np.ndarray:
    """Mean and standard deviation of the latents of [B, H, W, 3] uint8, [B, 2, C, h, w]."""
    moments = []
    for part in pixels.split(at_once(pixels.shape[1:])):
        mean, std = model.encode(part.permute(0, 3, 1, 2).float() / 127.5 - 1)
        moments.append(torch.stack([mean, std], dim=1).cpu().numpy())
    return np.concatenate(moments)


def encode(split: "Split", model, cache_dir: str | Path) -> Encoded:
    """The split's latents and caption embeddings, from the cache where they are in it.

    Where all of them are, the model's autoencoder and text encoders are not read.
    """
    folder = Path(cache_dir).expanduser() / "encodings"
    distinct = sorted({caption for captions in split.captions for caption in captions} - {""})
    row_of = {caption: row for row, caption in enumerate([*distinct, ""])}

    def encode_images(views: list[int]) -> dict:
        pixels = [split.pixels(*divmod(view, split.views)) for view in views]
        moments = [None] * len(pixels)
        for shape in {each.shape for each in pixels}:
            places = [place for place, each in enumerate(pixels) if each.shape == shape]
            alike = encode_pixels(torch.from_numpy(np.stack([pixels[place] for place in places])), model)
            for place, pair in zip(places, alike, strict=True):
                moments[place] = pair
        return {
            "moments": [pair.reshape(-1) for pair in moments],
            "shape": [list(pair.shape[1:]) for pair in moments],
            "framing": [list(framing(*divmod(view, split.views))) for view in views],
        }

    def whole(index: int, view: int) -> tuple[int, ...]:
        height, width, _ = split.pixels(index, view).shape
        return height, width, 0, 0, height, width

    framing = split.framing or whole

    def embed_captions(captions: list[str]) -> dict:
        columns = {}
        for name, tensor in model.embed(captions).items():
            columns[name] = tensor.cpu().flatten(1).numpy()
            columns[f"{name}.shape"] = [list(tensor.shape[1:])] * len(captions)
        return columns

    memory = folder.parent / "hashes"
    images_key = hash_of(FORMAT, *model.image_content, split.fingerprint, memory=memory)
    captions_key = hash_of(FORMAT, *model.text_content, json.dumps(distinct), memory=memory)
    views = list(range(len(split) * split.views))
    latents = _stored(
        folder / f"pictures-{images_key}", views, encode_images, lambda: at_once(split.pixels(0).shape), "images"
    )
    captions = _stored(folder / f"captions-{captions_key}", [*distinct, ""], embed_captions, lambda: BATCH, "captions")
    caption_rows = [[row_of[caption] for caption in texts] for texts in split.captions]
    _warn_of_long(distinct, next(iter(model.tokenizers.values())))
    return Encoded(latents, captions, caption_rows, split.views, images_key, captions_key)


def _warn_of_long(captions: list[str], tokenizer) -> None:
    longest = tokenizer.model_max_length
    tokens = tokenizer(captions, truncation=False, verbose=False).input_ids if captions else []
    if too_long := sum(len(each) > longest for each in tokens):
        log.warning(
            "%d of %d captions are longer than the %d tokens the text encoder takes; they are cut",
            too_long, len(captions), longest,
        )  # fmt: skip


def _stored(path: Path, inputs: list, encode_batch, batch: Callable[[], int], what: str) -> datasets.Dataset:
    """The rows that `encode_batch` makes of the inputs: read from `path`, or else made, and put there whole."""
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_suffix(".arrow")
    with FileLock(path.with_suffix(".lock")):  # two runs that start at once encode once
        if not file.is_file():
            encode_batch = _announced(encode_batch, len(inputs), what, file)
        encoded = datasets.Dataset.from_dict({"input": inputs}).map(
            encode_batch,
            input_columns=["input"],
            batched=True,
            batch_size=BATCH if file.is_file() else batch(),  # nothing is looked at if all is there
            remove_columns=["input"],
            new_fingerprint=path.name.rpartition("-")[2],
            cache_file_name=str(file),
            desc=f"encoding {what}",
        )
    return encoded.with_format("arrow")


def _announced(encode_batch: Callable, number: int, what: str, file: Path) -> Callable:
    """Says what the first batch shows of the room that all will take; ConfigError if it is not there."""
    announced = False

    def encode(inputs: list) -> dict:
        nonlocal announced
        columns = encode_batch(inputs)
        if not announced:
            announced = True
            values = (np.asarray(value) for column in columns.values() for value in column)
            needed = sum(value.nbytes for value in values) * number / len(inputs)
            free = shutil.disk_usage(file.parent).free
            log.info("encoding %d %s into the cache, about %s: %s", number, what, readable(needed), file)
            if needed > free:
                raise ConfigError(
                    f"cache_dir: {readable(needed)} are needed in {file.parent} for {number} encoded {what}, "
                    f"{readable(free)} are free; give a cache_dir with more room, or a smaller dataset.resolution"
                )
        return columns

    return encode


def readable(size: float) -> str:
    """Bytes as people say them: 1.2 MB is 1,200,000."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} GB"
