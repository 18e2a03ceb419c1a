"""A folder of three hundred images as phones, browsers and image tools leave them, with captions in every form."""

import io
import json
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.image_folders import from_folder
from PIL import Image, ImageCms

COLOUR, GRAY = (200, 60, 40), 104  # what ITU-R 601-2 makes of it
COLOURED = {
    **{"jpg": "RGB L CMYK", "JPG": "RGB", "jpeg": "RGB CMYK", "jfif": "RGB", "jpe": "RGB", "mpo": "RGB"},
    **{"png": "RGB RGBA L LA P 1 I;16", "PNG": "RGBA", "apng": "RGBA", "webp": "RGB RGBA", "avif": "RGB RGBA L"},
    **{"bmp": "RGB L P 1", "BMP": "RGB", "dib": "RGB", "gif": "P L", "jp2": "RGB L", "j2k": "RGB", "tga": "RGB RGBA L"},
    **{
        "tif": "RGB RGBA L P 1 CMYK I;16 LAB",
        "TIFF": "RGB",
        "ppm": "RGB",
        "pgm": "L",
        "pbm": "1",
        "qoi": "RGB RGBA",
    },
}
FORMATS = {
    **{"jfif": "JPEG", "jpe": "JPEG", "apng": "PNG", "dib": "DIB", "j2k": "JPEG2000", "jp2": "JPEG2000", "mpo": "MPO"},
    **{"tif": "TIFF", "pgm": "PPM", "pbm": "PPM", "jpg": "JPEG"},
}
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1", "cp1252")


def picture(mode, number):
    """An image in one colour but for a line, so that no two are alike."""
    image = Image.new("RGB", (24, 20), COLOUR)
    image.putpixel((number % 24, number // 24 % 20), (201, 61, 41))
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    if mode in ("LAB", "CMYK", "1", "P", "RGB", "L"):
        return _in_lab(image) if mode == "LAB" else image.convert(mode)
    return image.convert("L" if mode == "LA" else "RGB").convert(mode)


def _in_lab(image):
    own, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.profileToProfile(image, own, lab, outputMode="LAB")


def saved(suffix, mode, number, **options):
    file, kind = io.BytesIO(), FORMATS.get(suffix.lower(), suffix.upper())
    image = picture(mode, number)
    if kind == "GIF" or suffix == "apng":  # whose first frame counts
        options |= {"save_all": True, "append_images": [Image.new(image.mode, image.size)]}
    if kind == "TIFF" and mode == "LAB":
        options |= {"icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()}
    image.save(file, kind, **options)
    return file.getvalue()


def psd(number):
    """A Photoshop file of one flat image; Pillow reads them, but writes none."""
    pixels = np.asarray(picture("RGB", number)).transpose(2, 0, 1).tobytes()
    return b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 20, 24, 8, 3) + bytes(12) + bytes(2) + pixels


def with_workflow(number):
    """A PNG with the workflow of an image tool: more text than Pillow takes, before the pixels."""
    content = saved("png", "RGB", number)
    chunk = b"zTXt" + b"workflow\0\0" + zlib.compress(b"{}" * 10_000_000)
    end = 8 + 25  # signature and header
    whole = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return content[:end] + whole + content[end:]


def with_exif(number, orientation, text=False):
    """A JPEG that a camera has turned; text: its resolution and the place of further data are texts, not numbers."""
    entries = [struct.pack("<HHII", 0x0112, 3, 1, orientation)]
    entries += [struct.pack("<HHI4s", tag, 2, 4, b"odd\0") for tag in (0x011A, 0x8769) if text]
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)
    return saved("jpg", "RGB", number, exif=exif)


def contents():
    """suffix and bytes of the images that can be read."""
    number = 0
    while number < 250:
        for suffix, modes in COLOURED.items():
            for mode in modes.split():
                yield suffix, mode, saved(suffix, mode, number)
                number += 1
    for orientation in range(1, 9):
        yield "jpg", "RGB", with_exif(number + orientation, orientation)
    yield "jpg", "RGB", with_exif(number + 9, 6, text=True)
    yield "png", "RGB", with_workflow(number + 10)
    yield "psd", "RGB", psd(number + 11)
    yield "jpeg", "RGB", saved("jpg", "RGB", number + 12, icc_profile=b"no profile")
    yield "png", "P", saved("png", "P", number + 13, transparency=b"\xff" * 256)
    yield "jpg", "RGB", saved("png", "RGB", number + 14)  # another format than its name says


def describe(folder, names):
    """Captions in text files of every kind for half of the images, and in three kinds of metadata for the others."""
    tables = {kind: [] for kind in ("jsonl", "csv", "parquet")}
    for i, name in enumerate(names):
        caption = f"Bild {i}: ein Äpfelchen, rot"
        stem = name.rpartition(".")[0]
        if name.startswith("text"):
            stem = f"text/{stem[5:].upper()}" if i % 7 == 0 else stem
            own = ("txt", "TXT", "caption", "txt")[i % 4]
            (folder / f"{stem}.{own}").write_bytes(f"{caption}\r\n".encode(ENCODINGS[i % len(ENCODINGS)]))
            continue
        kind = name.split("/")[0]
        below = name.split("/", 1)[1]
        written = (below, below.upper(), f" {below}", below.rsplit(".", 1)[0], str(folder / name), f"own/{name}")[i % 6]
        tables[kind].append({"file_name": written, "text": caption})
    (folder / "jsonl" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tables["jsonl"]))
    lines = [f'{row["file_name"]} ; "{row["text"]}"' for row in tables["csv"]]
    (folder / "csv" / "metadata.csv").write_bytes("\r\n".join(["file_name ; text", *lines]).encode("utf-16"))
    pq.write_table(pa.Table.from_pylist(tables["parquet"]), folder / "parquet" / "metadata.parquet")


@pytest.mark.slow
def test_all_that_can_be_read_is_trained_on_and_the_rest_is_named(tmp_path, caplog):
    folder, modes = tmp_path / "own", {}
    for i, (suffix, mode, content) in enumerate(contents()):
        name = f"{('text', 'jsonl', 'text', 'csv', 'text', 'parquet')[i % 6]}/img{i:03}.{suffix}"
        modes[name] = mode
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    describe(folder, list(modes))

    good = saved("png", "RGB", 999)
    bad = {
        "truncated.jpg": saved("jpg", "RGB", 998)[:-200],
        "empty.png": b"",
        "text.png": b"not an image",
        "page.html.jpg": b"<html>403</html>",
        "drawing.svg": b"<svg/>",
        "raw.cr2": b"II*\0",
        "raw.dng": b"?",
        "phone.xyz.heic": b"\0\0\0\x18ftypheic",
        "new.jxl": b"\xff\x0a\xfa",
    }
    for name, content in bad.items():
        (folder / name).write_bytes(content)
        (folder / name).with_suffix(".txt").write_text("a caption")
    for name in ("uncaptioned.png", "silent.png", "odd.png"):
        (folder / name).write_bytes(good)
    (folder / "silent.txt").write_text(" \n")
    (folder / "odd.txt").write_bytes(b"\0\1\2\3")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "lonely.txt").write_text("of no image")
    (folder / "clip.mov").write_bytes(b"moov")
    named = {*bad, "uncaptioned.png", "silent.png", "odd.png", "gone.png"}
    assert len(modes) + len(named) >= 280

    data = from_folder(folder, on_error="skip")
    assert {item["item"] for item in data.skipped} == named
    assert "lonely.txt" in caplog.text
    assert "clip.mov" in caplog.text
    assert len(data.train) + len(data.validation) == len(modes)
    assert len({captions for split in (data.train, data.validation) for captions in split.captions}) == len(modes)
    for split in (data.train, data.validation):
        for index in range(len(split)):
            pixels = split.pixels(index)
            assert (pixels.shape, pixels.dtype) == ((16, 16, 3), np.uint8)
            mode = modes[
                next(name for name in modes if f"/img{int(split.captions[index][0].split()[1][:-1]):03}." in name)
            ]
            mean, gray = pixels.reshape(-1, 3).mean(axis=0), np.ptp(pixels.reshape(-1, 3).mean(axis=0)) < 3
            if mode in ("L", "LA", "I;16", "1"):
                assert gray, (mode, mean)
                assert mode == "1" or abs(mean.mean() - GRAY) < 8, (mode, mean)
            else:
                assert np.abs(mean - COLOUR).max() < 30, (mode, split.captions[index], mean)
