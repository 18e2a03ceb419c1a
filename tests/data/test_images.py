import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from t2i.data.image_plugins import missing_plugin
from t2i.data.images import BadImage, examine, read, upright


def saved(image, format="png", **options):
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def corner(image):
    """Colour of the pixel at the top left, as a list."""
    return np.asarray(image)[0, 0].tolist()


@pytest.fixture
def arrow():
    """4 × 3 pixels, no two alike."""
    return Image.fromarray(np.arange(36, dtype=np.uint8).reshape(3, 4, 3) * 7)


TURNED_BACK = {  # orientation -> what the camera did to the image that it shows
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", TURNED_BACK)
def test_images_are_turned_as_exif_says(arrow, orientation):
    stored = arrow.transpose(TURNED_BACK[orientation]) if orientation > 1 else arrow
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = read(saved(stored, exif=exif))
    assert found.size == (4, 3)
    assert np.array_equal(np.asarray(found), np.asarray(arrow))


def test_transparency_is_over_white():
    """Alpha, gray with alpha, a palette with alpha, and a colour that stands for transparent."""
    half_red = Image.new("RGBA", (2, 2), (255, 0, 0, 128))
    assert corner(read(saved(half_red))) == [255, 127, 127]
    assert corner(read(saved(Image.new("RGBA", (2, 2), (0, 0, 0, 0))))) == [255, 255, 255]
    assert corner(read(saved(Image.new("LA", (2, 2), (0, 0))))) == [255, 255, 255]
    assert corner(read(saved(Image.new("LA", (2, 2), (0, 128))))) == [127, 127, 127]
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 8, 7, 250, 0, 0])
    palette.putdata([0, 1])
    for transparency in (0, bytes([0, 255])):
        found = read(saved(palette, transparency=transparency))
        assert np.asarray(found).tolist() == [[[255, 255, 255], [250, 0, 0]]]
    keyed = Image.new("RGB", (2, 1), (1, 2, 3))
    keyed.putpixel((1, 0), (4, 5, 6))
    assert np.asarray(read(saved(keyed, transparency=(1, 2, 3)))).tolist() == [[[255, 255, 255], [4, 5, 6]]]


def test_a_palette_is_its_colours():
    palette = Image.new("P", (1, 1))
    palette.putpalette([9, 8, 7])
    assert corner(read(saved(palette))) == [9, 8, 7]


def test_gray_and_black_and_white():
    assert corner(read(saved(Image.new("L", (2, 2), 77)))) == [77, 77, 77]
    assert corner(read(saved(Image.new("1", (2, 2), 1)))) == [255, 255, 255]
    assert corner(read(saved(Image.new("1", (2, 2), 0)))) == [0, 0, 0]


def test_cmyk():
    """No ink is white, black ink black, and cyan ink takes the red away."""
    for ink, colour in (((0, 0, 0, 0), [255, 255, 255]), ((0, 0, 0, 255), [0, 0, 0]), ((255, 0, 0, 0), [0, 255, 255])):
        for format in ("tiff", "jpeg"):
            found = read(saved(Image.new("CMYK", (16, 16), ink), format))
            assert np.abs(np.array(corner(found)) - colour).max() <= 3


@pytest.mark.parametrize("format", ["png", "tiff"])
def test_sixteen_bits_are_scaled(format):
    """Pillow's own conversion would make white of everything above 255."""
    values = np.array([[0, 257, 0x8000, 0xFFFF]], dtype=np.uint16)
    found = np.asarray(read(saved(Image.fromarray(values), format)))
    assert found[0, :, 0].tolist() == [0, 1, 128, 255]
    assert found.shape == (1, 4, 3)
    assert corner(upright(Image.new("I", (1, 1), 0x8000))) == [128, 128, 128]
    assert corner(upright(Image.new("I;16B", (1, 1), 0x0101))) == [1, 1, 1]


def test_numbers_without_a_known_white_are_refused():
    for image in (Image.new("F", (1, 1)), Image.new("I", (1, 1), 70_000), Image.new("I", (1, 1), -1)):
        with pytest.raises(BadImage, match="whose white is undefined"):
            read(saved(image, "tiff"))


def test_what_is_no_whole_image(arrow):
    whole = saved(Image.effect_noise((64, 64), 50), "jpeg")
    assert examine(whole).problem == ""
    assert "truncated" in examine(whole[: len(whole) // 2]).problem
    assert examine(b"").problem == "is an empty file"
    assert examine(b"<html>404</html>").problem == "is not an image in a format that t2i reads"
    assert examine(saved(arrow)[:40]).problem


def test_no_image_is_run_as_a_program():
    """Pillow would hand this to Ghostscript."""
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(harm) (w) file closefile\n"
    assert examine(program).problem == "is not an image in a format that t2i reads"


def test_a_small_file_of_a_huge_image_is_refused():
    """Before it is unpacked: 60,000 × 60,000 pixels would take ten gigabytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    assert examine(bomb).problem.startswith("is too large")


def test_facts_are_of_the_upright_image(arrow):
    exif = Image.Exif()
    exif[0x0112] = 6
    facts = examine(saved(arrow, exif=exif))
    assert (facts.width, facts.height, facts.problem) == (3, 4, "")


# Columns of the matrices from linear red, green and blue to XYZ under D50: Adobe RGB (1998) and sRGB.
ADOBE = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
GAMMA = 2 + 51 / 256  # of Adobe RGB


def profile(matrix, gamma):
    """An ICC profile of three primaries and a gamma (ICC.1:2001-04, sections 6.1 and 6.5)."""

    def xyz(values):
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"text\0\0\0\0none\0\0\0\0"
    tags = {b"cprt": text, b"wtpt": xyz((0.9642, 1, 0.8249))}
    tags[b"desc"] = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"a\0" + bytes(78)
    tags |= {name: xyz(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), matrix.T, strict=True)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, data, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(data), len(content))
        data += content
    rest = struct.pack(">I", len(tags)) + table + data
    header = struct.pack(">I", 128 + len(rest)) + b"none\2\x10\0\0mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28)
    header += struct.pack(">iii", 63190, 65536, 54061)  # D50
    return header + bytes(128 - len(header)) + rest


def png(pixels, icc_profile):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", icc_profile=icc_profile)
    return file.getvalue()


def test_colours_are_those_that_the_profile_means():
    """Against the formulas: from Adobe RGB over XYZ to sRGB, for colours that sRGB has."""
    pixels = np.random.default_rng(0).integers(80, 180, (16, 16, 3), dtype=np.uint8)
    linear = (pixels / 255) ** GAMMA @ ADOBE.T @ np.linalg.inv(SRGB).T
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clip(0) ** (1 / 2.4) - 0.055)
    expected = 255 * encoded
    inside = ((linear > 0.001) & (linear < 0.999)).all(-1)
    found = np.asarray(read(png(pixels, profile(ADOBE, GAMMA)))).astype(float)
    assert inside.mean() > 0.5
    assert np.abs(found - expected)[inside].max() < 2
    assert np.abs(found - pixels)[inside].max() > 10  # what ignoring the profile would be wrong by


@pytest.mark.parametrize("what", ["srgb", "damaged", "of another colour space", "none"])
def test_other_profiles_leave_the_colours(what):
    profiles = {"srgb": "sRGB", "of another colour space": "LAB"}
    content = {"damaged": b"no profile", "none": None}.get(what)
    if what in profiles:
        content = ImageCms.ImageCmsProfile(ImageCms.createProfile(profiles[what])).tobytes()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(read(png(pixels, content))), pixels)


@pytest.mark.parametrize(
    ("package", "register", "kind"),
    [("pillow_heif", lambda plugin: plugin.register_heif_opener(), "HEIF"), ("pillow_jxl", lambda plugin: None, "JXL")],
)
def test_formats_with_packages_of_their_own_are_read(package, register, kind):
    register(pytest.importorskip(package))
    file = io.BytesIO()
    Image.new("RGB", (64, 32), (200, 60, 40)).save(file, kind)
    image = read(file.getvalue())
    assert (image.mode, image.size) == ("RGB", (64, 32))
    assert np.abs(np.asarray(image).astype(int) - (200, 60, 40)).max() < 10


@pytest.mark.parametrize(
    ("content", "extra"),
    [(b"\0\0\0\x18ftypheic", "heic"), (b"\0\0\0\x18ftypmif1", "heic"), (b"\xff\x0a\xfa", "jxl"),
     (b"\0\0\0\x0cJXL \r\n\x87\n\0", "jxl")],
)  # fmt: skip
def test_a_missing_package_is_named_with_the_command_that_brings_it(content, extra):
    assert f"pip install 't2i[{extra}]'" in missing_plugin(content)
    assert missing_plugin(b"BM" + content) == ""
