"""What a row of a table may hold as an image: a file's bytes in several forms, or the path of a file."""

import base64
import binascii
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t2i.data.images import BadImage

SIGNATURES = (
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"GIF8",
    b"RIFF",
    b"BM",
    b"II*\x00",
    b"MM\x00*",
    b"\xff\x0a",
    b"\x00\x00\x00\x0c",
)
SHOWN = 60  # characters of a value in a message


def content_of(value: Any, folder: str = "") -> tuple[bytes | None, str]:
    """The bytes of an image, or None and the path of its file. Raises BadImage for what can be neither.

    value: bytes, a list of them, a text (base64, a data: address or a path), or a table {bytes, path}. folder: which
    relative paths in texts start from.
    """
    if isinstance(value, dict):
        if value.get("bytes") is not None:
            return content_of(value["bytes"])
        value, folder = value.get("path"), ""
        return (None, os.path.abspath(value)) if value else _nothing()
    if isinstance(value, str):
        return _of_text(value, folder)
    if isinstance(value, bytes | bytearray):
        return bytes(value), ""
    if isinstance(value, Sequence) or hasattr(value, "tolist"):
        try:
            return bytes(list(value)), ""
        except (TypeError, ValueError) as error:
            raise BadImage("has a list as image that is not one of bytes; store the bytes of an image file") from error
    return _nothing()


def _nothing() -> tuple[None, str]:
    raise BadImage("has no image")


def _of_text(text: str, folder: str) -> tuple[bytes | None, str]:
    text = text.strip()
    if not text:
        return _nothing()
    if text.startswith("data:"):
        header, _, encoded = text.partition(",")
        content = _decoded(encoded) if header.endswith(";base64") else None
        if content is None:
            raise BadImage(f"has a data: address without an image in base64 ({shortened(text)})")
        return content, ""
    if re.match(r"(https?|ftp|s3|gs|hf)://", text, re.IGNORECASE):
        raise BadImage(
            f"names an address on the web, which is not fetched ({shortened(text)}); download the images first, for "
            "example with img2dataset"
        )
    content = _decoded(text)
    if content is not None and content.startswith(SIGNATURES):
        return content, ""
    return None, os.path.abspath(Path(folder) / text.removeprefix("file://"))


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return None


def shortened(text: str, longest: int = SHOWN) -> str:
    return text if len(text) <= longest else f"{text[:longest]}…"
