"""Text as people's editors and tools save it: UTF-8 with or without a mark, UTF-16, or Windows' Latin-1."""

import codecs
import re
from pathlib import Path

MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
WESTERN = ("cp1252", "latin-1")  # Windows' Latin-1, and the standard one, which has a character for every byte
# No text holds these, but images and archives do; those from \x80 on, what is in an encoding of another script.
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x80-\x84\x86-\x9f]")


def encoding_of(beginning: bytes) -> str:
    """The encoding that the first bytes of a file speak for; UTF-8 if they say nothing."""
    for mark, encoding in MARKS:
        if beginning.startswith(mark):
            return encoding
    pairs = beginning[: len(beginning) // 2 * 2]
    if pairs and pairs[1::2].count(0) > len(pairs) // 4 and not pairs[::2].count(0):
        return "utf-16-le"
    if pairs and pairs[::2].count(0) > len(pairs) // 4 and not pairs[1::2].count(0):
        return "utf-16-be"
    return "utf-8"


def read_text(file: Path) -> str:
    """The text of a small file. Raises ValueError if it is none."""
    return decoded(file.read_bytes())


def decoded(content: bytes) -> str:
    """The text of some bytes. Raises ValueError if they are none in a known encoding."""
    encoding = encoding_of(content[:1000])
    choices = (encoding, *WESTERN) if encoding == "utf-8" else (encoding,)
    for choice in choices:
        try:
            text = content.decode(choice)
        except UnicodeDecodeError:
            continue
        if not CONTROL.search(text):
            return text
    raise ValueError("it is not text in UTF-8, UTF-16 or Latin-1; save it in UTF-8")


def is_western(content: bytes) -> bool:
    """Whether text is taken for Latin-1 because it is nothing else: a guess, as any bytes could be it."""
    try:
        content.decode(encoding_of(content[:1000]))
    except UnicodeDecodeError:
        return True
    return False
