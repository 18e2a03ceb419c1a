"""Captioned images in every format that a folder or a data set of the Hub may have, and both loaders for them."""

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
from t2i.data.hub_dataset import hub
from t2i.data.image_folder import folder
from t2i.data.splits import Captioned

SHARED = OmegaConf.to_container(OmegaConf.load(CONF / "dataset" / "shared" / "images.yaml")) | {
    **{"resolution": 16, "validation_share": 0.2, "min_validation_samples": 0, "folds": None, "fold": None}
}
COLUMNS = {"name": None, "revision": None, "split": "train", "image_column": "image", "caption_column": "text"}
CAPTIONS = {f"{'below/' * (i % 3)}{name}": f"image {i}" for i, name in enumerate("abcdefghijklmnopqrstuvwx")}


def from_folder(path: Path | str, **changes) -> Captioned:
    """The data set of dataset=folder, at 16 pixels and with a fifth of the images held out."""
    return folder(**{"path": str(path), "caption_column": "text", **SHARED, **changes})


def from_hub(path: Path | str, **changes) -> Captioned:
    """The same of dataset=hub."""
    return hub(**{"path": str(path), **COLUMNS, **SHARED, **changes})


def from_tars(path: Path | str, **changes) -> Captioned:
    """The same of tar files."""
    return from_hub(path, image_column="png", caption_column="txt", **changes)


def content(name: str) -> bytes:
    """The bytes of an image with noise of its own, taller or wider than high."""
    random = np.random.default_rng(list(name.encode()))
    file = io.BytesIO()
    Image.fromarray(random.integers(0, 255, (*random.integers(20, 40, 2), 3), dtype=np.uint8)).save(file, "png")
    return file.getvalue()


def write_images(folder: Path) -> list[dict[str, str]]:
    """Write the images as PNG files; returns the rows of a metadata file."""
    for name in CAPTIONS:
        file = folder / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content(name))
    return [{"file_name": f"{name}.png", "text": caption} for name, caption in CAPTIONS.items()]


def as_jsonl(folder: Path) -> None:
    rows = write_images(folder)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[::-1]))


def as_csv(folder: Path) -> None:
    rows = write_images(folder)
    (folder / "metadata.csv").write_text("text,file_name\n" + "".join(f"{r['text']},{r['file_name']}\n" for r in rows))


def as_parquet(folder: Path) -> None:
    pq.write_table(pa.Table.from_pylist(write_images(folder)), folder / "metadata.parquet")


def as_txt(folder: Path) -> None:
    for row in write_images(folder):
        (folder / row["file_name"]).with_suffix(".txt").write_text(row["text"] + "\n")


def as_embedded_parquet(folder: Path) -> None:
    """As data sets on the Hub are."""
    rows = [{"image": {"bytes": content(name), "path": None}, "text": text} for name, text in CAPTIONS.items()]
    pq.write_table(pa.Table.from_pylist(rows), folder / "part.parquet")


def as_tars(folder: Path) -> None:
    """As WebDataset has them: pairs of files of one name, in two shards."""
    names = sorted(CAPTIONS)
    for shard in (0, 1):
        with tarfile.open(folder / f"shard-{shard}.tar", "w") as tar:
            for i, name in list(enumerate(names))[shard::2]:
                for suffix, data in (("png", content(name)), ("txt", CAPTIONS[name].encode())):
                    member = tarfile.TarInfo(f"{i:04}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
