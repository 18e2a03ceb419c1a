"""Images that are good although what stands beside their pixels is odd: orientation, texts."""

import struct

from PIL import ExifTags, Image, ImageOps

PNG = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
TURNS = {  # EXIF orientation -> what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def turned(image: Image.Image) -> Image.Image:
    """The image upright according to its EXIF data; where Pillow can't rewrite these, they are only read."""
    image.load()  # errors of the pixels are not those of the EXIF data
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # text where numbers belong, fractions by zero, offsets out of the data ...
        turn = TURNS.get(_orientation(image))
        return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # as above
        return 1


def without_long_texts(content: bytes) -> bytes:
    """The PNG file without its texts; other files as they are."""
    if not content.startswith(PNG):
        return content
    kept, place = [PNG], len(PNG)
    while place + 8 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        end = place + length + 12  # with the length, the type and the checksum
        if content[place + 4 : place + 8] not in TEXTS:
            kept.append(content[place:end])
        place = end
    return b"".join(kept)
