"""The encoding cache: images and captions pass through the frozen encoders once, for all runs.

Entries are content-addressed: the key of a caption is a hash of its text, that of a view of an image a hash of the
image and of how it is cut, and each encoder has a folder of its own, named by a hash of its weights. So runs and data
sets share entries, a data set that has grown encodes what is new, and a changed VAE can't be mistaken for the old one.
Latents are stored as mean and standard deviation and sampled at each use; captions are dropped at each use, too.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from t2i.config import ConfigError
from t2i.data import row_files
from t2i.data.cache_files import held
from t2i.data.emphasis import Emphasis
from t2i.data.filling import Encode, fill, readable
from t2i.data.fingerprints import digest_of
from t2i.data.pack_folder import PackFolder, key_of
from t2i.data.packs import Entries, Tensors
from t2i.data.splits import Split
from t2i.models.model import Content, Model
from t2i.models.tokens import lengths
from t2i.models.transformer import AT_ONCE

log = logging.getLogger(__name__)
FORMAT = "4"  # of what is encoded; part of the keys
BATCH, BATCH_PIXELS = 64, 2**20  # images encoded at once, and pixels: at most


class Encoded:
    """The encodings of a split, memory-mapped.

    latents: an entry per view of an image: `moments`, mean and standard deviation of its latents, [2, C, h, w], and
    `framing`, the six numbers that Stable Diffusion XL is conditioned on.
    captions: an entry per distinct caption, the empty one last: what the model's `embed` returns for it.
    caption_rows: the entries of each image's captions, one or more.
    """

    def __init__(
        self,
        latents: Entries,
        captions: Entries,
        caption_rows: Sequence[Sequence[int]],
        views: int,
        images_key: str,
        captions_key: str,
    ):
        for pack in latents.packs:
            if pack.layout != {"framing": (1, False), "moments": (4, True)}:
                raise ConfigError(f"{pack.file} holds something else than encoded images; delete it")
        self.latents, self.captions = latents, captions
        self.images_key, self.fingerprint = images_key, images_key + captions_key
        self.caption_rows, self.views = caption_rows, views
        self.emphasis: Emphasis | None = None  # what the images count in the loss; None: all alike

    def __len__(self) -> int:
        return len(self.caption_rows)

    def sizes(self) -> np.ndarray:
        """Height and width of each image's latents, [N, 2]."""
        return self.latents.shapes("moments")[:: self.views, -2:]

    def moments(self, items: list[int], draws: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the latents, each [B, C, h, w] float32.

        draws: in [0, 1), one for each item, to choose among its views; None chooses the first view.
        """
        moments = self.latents.read("moments", self._views(items, draws)).numpy()
        return moments[:, 0], moments[:, 1]

    def framing(self, items: list[int], draws: np.ndarray | None = None) -> Tensor:
        """The size and crop conditioning of Stable Diffusion XL, [B, 6] integers (see t2i.data.preparation)."""
        return self.latents.read("framing", self._views(items, draws))

    def weight(self, items: list[int], draws: np.ndarray | None = None) -> Tensor | None:
        """What the errors of these views count in the loss, [B, 1, h, w] or [B, 1, 1, 1]; None: all count alike."""
        return None if self.emphasis is None else self.emphasis.weight(items, self._views(items, draws))

    def shares(self, items: list[int]) -> Tensor | None:
        """What the errors count within each image by its mask, of mean one, [B, 1, h, w]; None without masks."""
        return None if self.emphasis is None else self.emphasis.shares(self._views(items, None))

    def _views(self, items: list[int], draws: np.ndarray | None) -> list[int]:
        """The entries of the chosen views."""
        draws = np.zeros(len(items)) if draws is None else draws
        return [item * self.views + int(u * self.views) for item, u in zip(items, draws, strict=True)]

    def text(self, items: list[int | None], draws: np.ndarray | None = None) -> dict[str, Tensor]:
        """Embedded captions of the items, chosen by draws as views are; None means the empty caption.

        They are what `embed` returns, but zero at the places that a `mask` hides.
        """
        draws = np.zeros(len(items)) if draws is None else draws
        of_items = [() if item is None else self.caption_rows[item] for item in items]
        rows = [own[int(u * len(own))] if own else -1 for own, u in zip(of_items, draws, strict=True)]
        return {name: self.captions.read(name, rows) for name in self.captions.names}


def batch_size(shape: tuple[int, ...]) -> int:
    """How many images of a shape [H, W, 3] are encoded at once."""
    height, width, _ = shape
    return max(1, min(BATCH, BATCH_PIXELS // (height * width)))


def encode_pixels(pixels: Tensor, model: Model) -> Tensor:
    """Mean and standard deviation of the latents of [B, H, W, 3] uint8, [B, 2, C, h, w] on the model's device."""
    moments = []
    for part in pixels.split(batch_size(pixels.shape[1:])):
        mean, std = model.encode(part.permute(0, 3, 1, 2).float() / 127.5 - 1)
        moments.append(torch.stack([mean, std], dim=1))
    return torch.cat(moments)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """N entries of one encoder that a split needs."""

    what: str  # the entries, in the plural
    encoder: Sequence[Content]  # everything that changes its output
    keys: list[bytes]
    encode: Encode  # the entries of some rows, which are numbers below N
    batch: Callable[[int], int]  # how many are encoded at once, by a row
    fingerprint: str  # of the whole list
    earlier: str  # the name that such a list has in the caches of earlier versions


def encode(split: Split, model: Model, cache_dir: str | Path) -> Encoded:
    """The split's latents and caption embeddings: read from the cache, in which those that are missing are stored.

    If none is missing, the weights of the autoencoder and the text encoders are not read.
    """
    cache, views = Path(cache_dir).expanduser(), split.views
    distinct = sorted({caption for captions in split.captions for caption in captions} - {""})
    row_of = {caption: row for row, caption in enumerate([*distinct, ""])}
    images = Wanted(
        what="images",
        encoder=model.image_content,
        keys=[key_of(split.identify(*divmod(row, views))) for row in range(len(split) * views)],
        encode=partial(_encode_views, split, model),
        batch=lambda row: batch_size(split.pixels(*divmod(row, views)).shape),
        fingerprint=split.fingerprint,
        earlier="pictures",
    )
    captions = Wanted(
        what="captions",
        encoder=model.text_content,
        keys=[key_of(caption) for caption in row_of],
        encode=partial(_embed, model, list(row_of)),
        batch=lambda row: BATCH if model.trains_text else AT_ONCE,
        fingerprint=json.dumps(distinct),
        earlier="captions",
    )
    latents, images_key = _entries(images, cache)
    embedded, captions_key = _entries(captions, cache)
    caption_rows = [[row_of[caption] for caption in texts] for texts in split.captions]
    _warn_of_long(distinct, *model.limit)
    encoded = Encoded(latents, embedded, caption_rows, views, images_key, captions_key)
    encoded.emphasis = _emphasis(split, latents.shapes("moments")[:, -2:], cache)
    return encoded


def _emphasis(split: Split, sizes: np.ndarray, cache: Path) -> Emphasis | None:
    """What the split's images count in the loss. sizes: height and width of the latents of each view, [N, 2]."""
    loss_weights = np.ones(len(split)) if split.loss_weights is None else split.loss_weights
    if (masks := split.masks) is None:
        return None if split.loss_weights is None else Emphasis(loss_weights)
    at = [(*divmod(row, split.views), (int(size[0]), int(size[1]))) for row, size in enumerate(sizes)]
    keys = [repr((masks.identity(index, view), size)) for index, view, size in at]
    wanted = Wanted(
        what="masks",
        encoder=["means over the pixels of a latent"],
        keys=[key_of(key) for key in keys],
        encode=lambda rows: [{"mask": masks.at_latents(*at[row])} for row in rows],
        batch=lambda row: BATCH,
        fingerprint=json.dumps(keys),
        earlier="masks",
    )
    entries, _ = _entries(wanted, cache)
    shown = [entries.read("mask", [row]) for row in range(len(at))]
    if empty := sum(not bool(mask.any()) for mask in shown):
        message = "the masks of %d of %d views are black where the image is cut, so nothing is learned of them"
        log.warning(message, empty, len(at))
    if shown and all(bool((mask == 255).all()) for mask in shown):
        log.warning("dataset.masks: the masks hide nothing; all images count as a whole")
    return Emphasis(loss_weights, masks, entries)


def _entries(wanted: Wanted, cache: Path) -> tuple[Entries, str]:
    """The entries, and a key of all of them and their encoder."""
    digest = digest_of(FORMAT, *wanted.encoder, memory=cache / "hashes")
    encoder = digest.hexdigest()[:32]
    digest.update(wanted.fingerprint.encode())
    key = digest.hexdigest()[:32]
    folder = PackFolder(cache / "encodings" / f"{wanted.what}-{encoder}", encoder)
    with held(folder.folder / f"{key[0]}.lock"):  # of two runs with the same data that start at once, one encodes
        entries = folder.find(wanted.keys)
        if missing := entries.missing:
            rows = list({wanted.keys[row]: row for row in reversed(missing)}.values())[::-1]  # of each key the first
            _fill(folder, wanted, rows, folder.folder.parent / f"{wanted.earlier}-{key}.arrow")
            entries = folder.find(wanted.keys)
    if entries.missing:
        raise ConfigError(f"cache_dir: {folder.folder} could not be read back; use a cache_dir on another disk")
    return entries, key


def _fill(folder: PackFolder, wanted: Wanted, rows: list[int], earlier: Path) -> None:
    """Encode some rows, or copy them from the file in which an earlier version has stored the whole list."""
    number, total, into = f"{len(rows):,}", f"{len(set(wanted.keys)):,}", folder.folder
    if stored := row_files.read(earlier, len(wanted.keys)):
        encode, batch = partial(row_files.entries, stored), AT_ONCE
        message = "copying %s of %s %s from the cache of an earlier version into %s; then you can delete %s (%s)"
        log.info(message, number, total, wanted.what, into, earlier, readable(earlier.stat().st_size))
    else:
        encode, batch = wanted.encode, wanted.batch(rows[0])
        log.info("encoding %s of %s %s into %s", number, total, wanted.what, into)
    fill(folder, wanted.keys, rows, lambda part: [_visible(entry) for entry in encode(part)], batch, wanted.what)


def _encode_views(split: Split, model: Model, views: list[int]) -> Sequence[Tensors]:
    """The entries of some views, numbered through all images of the split."""
    addresses = [divmod(view, split.views) for view in views]
    pixels = [split.pixels(*address) for address in addresses]
    moments: dict[int, np.ndarray] = {}
    for shape in {image.shape for image in pixels}:
        alike = [i for i, image in enumerate(pixels) if image.shape == shape]
        encoded = encode_pixels(torch.from_numpy(np.stack([pixels[i] for i in alike])), model)
        moments |= zip(alike, encoded.cpu().numpy(), strict=True)
    if split.framing:
        framing = [list(split.framing(*address)) for address in addresses]
    else:
        framing = [[height, width, 0, 0, height, width] for height, width, _ in (image.shape for image in pixels)]
    return [
        {"moments": torch.from_numpy(moments[i]), "framing": torch.tensor(framing[i], dtype=torch.int64)}
        for i in range(len(views))
    ]


def _embed(model: Model, captions: list[str], rows: list[int]) -> Sequence[Tensors]:
    """The entries of some captions."""
    text = {name: tensor.cpu() for name, tensor in model.embed([captions[row] for row in rows]).items()}
    return [{name: tensor[i] for name, tensor in text.items()} for i in range(len(rows))]


def _visible(entry: Tensors) -> Tensors:
    """The entry with zeros where a mask hides the padding of a caption: zeros at the end take no space."""
    if not {"mask", "encoder_hidden_states"} <= entry.keys():
        return entry
    hidden = entry["encoder_hidden_states"].masked_fill(entry["mask"][:, None] == 0, 0)
    return {**entry, "encoder_hidden_states": hidden}


def _warn_of_long(captions: list[str], tokenizer: PreTrainedTokenizerBase, longest: int) -> None:
    if too_long := sum(length > longest for length in lengths(tokenizer, captions)):
        message = "%d of %d captions are longer than the %d tokens that the text encoder takes; they are truncated"
        log.warning(message, too_long, len(captions), longest)
