"""Features of images, computed in batches and kept by the image's content and the network's."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from t2i.data.fingerprints import hash_of
from t2i.data.pack_folder import PackFolder, key_of
from t2i.data.packs import packed
from t2i.evaluation.image_metrics.metric import Pictures
from t2i.models.model import Content

FORMAT = "features 1"  # changes with what the features of the same images and files depend on
NAME = "features"  # of the tensor in a pack, and of the folder of the cache
PACK = 2048  # images whose features are stored together: an interrupted evaluation loses no more


class Extractor(Protocol):
    """A network in memory."""

    batch_size: int

    def images(self, images: Sequence[Image.Image]) -> Tensor: ...


class Network(Protocol):
    """A network that can be loaded."""

    @property
    def image_content(self) -> tuple[Content, ...]: ...

    def load(self, device: torch.device) -> Extractor: ...


class Features(NamedTuple):
    """Of N images."""

    values: np.ndarray  # [N, D], float32
    content: str  # a hash of the images

    @property
    def units(self) -> np.ndarray:
        """Each divided by its length, float64."""
        values = self.values.astype(np.float64)
        return values / np.linalg.norm(values, axis=1, keepdims=True).clip(1e-12)


def identity(parts: Sequence[Content], cache_dir: str | None) -> str:
    """A hash of files and texts, 32 hexadecimal digits. cache_dir: where the hashes of large files are kept."""
    if cache_dir is not None:
        return hash_of(*parts, memory=Path(cache_dir).expanduser() / "hashes")
    with TemporaryDirectory() as memory:
        return hash_of(*parts, memory=Path(memory))


def features(
    network: Network, images: Pictures, device: torch.device, cache_dir: str | None, extractor: Extractor | None = None
) -> Features:
    """Those of each image, in their order; only what is not in cache_dir/features is computed.

    Features in half precision, which GPUs compute, are kept apart from those in float32. extractor: the loaded network,
    where it is needed anyway; otherwise it is loaded here, if any features are missing.
    """
    keys = [_key(images[index]) for index in range(len(images))]
    content = hashlib.sha256(b"".join(keys)).hexdigest()[:32]
    loaded = [extractor] if extractor is not None else []

    def compute(indices: Sequence[int]) -> Tensor:
        if not loaded:
            loaded.append(network.load(device))
        size = loaded[0].batch_size
        batches = [indices[start : start + size] for start in range(0, len(indices), size)]
        return torch.cat([loaded[0].images([images[index] for index in batch]) for batch in batches])

    if cache_dir is None:
        first = {key: index for index, key in reversed(list(enumerate(keys)))}
        rows = {key: row for row, key in enumerate(first)}
        values = compute(list(first.values())).numpy()
        return Features(values[[rows[key] for key in keys]], content)
    encoder = identity((FORMAT, "float16" if device.type == "cuda" else "float32", *network.image_content), cache_dir)
    folder = PackFolder(Path(cache_dir).expanduser() / NAME / encoder, encoder)
    return Features(_through_cache(folder, keys, compute), content)


def _through_cache(folder: PackFolder, keys: Sequence[bytes], compute: Callable[[Sequence[int]], Tensor]) -> np.ndarray:
    missing = {keys[index]: index for index in reversed(folder.find(keys).missing)}
    left = sorted(missing.values())
    for start in range(0, len(left), PACK):
        indices = left[start : start + PACK]
        rows = compute(indices)
        folder.add({keys[index]: {NAME: packed(row)} for index, row in zip(indices, rows, strict=True)})
    return folder.find(keys).read(NAME, range(len(keys))).numpy()


def _key(image: Image.Image) -> bytes:
    """By the pixels, so that the same image in another file format is the same."""
    image = image.convert("RGB")
    return key_of(f"{image.size} {hashlib.sha256(image.tobytes()).hexdigest()}")
