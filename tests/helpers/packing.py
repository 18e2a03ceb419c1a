"""Captioned images packed into shards, as tar files of WebDataset and as Parquet files of the Hub."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import OmegaConf
from PIL import Image

from t2i.config.compose import CONF
from t2i.data.sharded_datasets import stream, webdataset
from t2i.data.splits import Captioned

SHARED = OmegaConf.to_container(OmegaConf.load(CONF / "dataset" / "shared" / "shards.yaml")) | {"resolution": 16}


def image(number: int) -> bytes:
    """The PNG of an image of its own, taller or wider than high."""
    random = np.random.default_rng(number)
    height, width = random.integers(20, 40, 2)
    pixels = np.full((height, width, 3), random.integers(0, 255, 3), dtype=np.uint8)
    pixels[: height // 2, : width // 2] = random.integers(0, 255, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def caption(number: int) -> str:
    return f"image {number}"


def sha256(number: int) -> str:
    return hashlib.sha256(image(number)).hexdigest()


def write_tar(file: Path, members: dict[str, bytes]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file


def as_txt(numbers: range) -> dict[str, bytes]:
    """Members of a tar file: images, each with a text file."""
    pairs = [(f"{i:05}.png", image(i), f"{i:05}.txt", f"{caption(i)}\n".encode()) for i in numbers]
    return {name: content for png, pixels, txt, text in pairs for name, content in ((png, pixels), (txt, text))}


def as_json(numbers: range) -> dict[str, bytes]:
    """The same with the captions in KEY.json."""
    named = {f"{i:05}.json": json.dumps({"text": caption(i), "width": 3}).encode() for i in numbers}
    return {name: content for name, content in as_txt(numbers).items() if name.endswith(".png")} | named


def write_parquet(file: Path, numbers: range, rows: int = 3) -> Path:
    """rows: of a row group."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = [{"image": {"bytes": image(i), "path": f"{i}.png"}, "text": caption(i)} for i in numbers]
    pq.write_table(pa.Table.from_pylist(content), file, row_group_size=rows)
    return file


def write_shards(folder: Path, suffix: str, shards: int, items: int) -> Path:
    """Write shards with the given number of items each. suffix: tar or parquet."""
    for shard in range(shards):
        numbers, file = range(shard * items, (shard + 1) * items), folder / f"train-{shard:03}.{suffix}"
        if suffix == "tar":
            write_tar(file, as_txt(numbers))
        else:
            write_parquet(file, numbers)
    return folder


def from_files(path: Path, cache: Path, **changes) -> Captioned:
    """The data set of dataset=webdataset, at 16 pixels."""
    return webdataset(**{"path": str(path), "caption_column": "txt", **SHARED, "cache_dir": str(cache), **changes})


def from_repository(path: str, cache: Path, **changes) -> Captioned:
    """The data set of dataset=stream, at 16 pixels."""
    files = {"revision": None, "data_files": "data/train-*", "validation_files": None, "keep_shards": 4}
    return stream(**{"path": path, "caption_column": "txt", **files, **SHARED, "cache_dir": str(cache), **changes})
