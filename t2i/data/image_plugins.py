"""Formats that Pillow reads with a package of their own: HEIC of phones, and JPEG XL."""

import importlib
from contextlib import suppress
from typing import NamedTuple


class Plugin(NamedTuple):
    """A package that teaches Pillow a format."""

    format: str
    modules: tuple[str, ...]  # any of them
    extra: str  # of t2i, which installs it


HEIC = Plugin("HEIC", ("pillow_heif",), "heic")
JPEG_XL = Plugin("JPEG XL", ("pillow_jxl",), "jxl")
BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"hevx", b"mif1", b"msf1")  # of ISO/IEC 23008-12 files
JXL = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL \r\n\x87\n")  # a bare codestream, and one in a container


def register_plugins() -> None:
    """Make Pillow read the formats whose packages are installed."""
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    with suppress(ImportError):
        importlib.import_module("pillow_jxl")  # registers itself


def missing_plugin(content: bytes) -> str:
    """What to install for an image that Pillow does not know, as the rest of a sentence; empty for other files."""
    if content[4:8] == b"ftyp" and content[8:12] in BRANDS:
        plugin = HEIC
    elif content.startswith(JXL):
        plugin = JPEG_XL
    else:
        return ""
    return f"is in {plugin.format}, which needs another package: pip install 't2i[{plugin.extra}]'; or save it as JPEG"
