"""Labelled grids of images."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

LABEL_HEIGHT = 14
MARGIN = 4
MOST_LINES = 4  # of a label below an image of a row


def grid(rows: Sequence[Sequence[Image.Image]], labels: Sequence[str], row_labels: Sequence[str] = ()) -> Image.Image:
    """A grid of images of one size, with `labels` below the columns and `row_labels` to the left of the rows."""
    width, height = rows[0][0].size
    scale = max(1, round(96 / width))  # enlarge small images, so that the labels are readable
    width, height = width * scale, height * scale
    font = ImageFont.load_default(size=11)
    left = max((int(font.getlength(label)) for label in row_labels), default=0) + MARGIN
    lines = [_wrap(label, font, width) for label in labels]
    bottom = LABEL_HEIGHT * max(len(text.splitlines()) for text in lines) + MARGIN
    sheet = Image.new("RGB", (left + len(labels) * (width + MARGIN), len(rows) * (height + MARGIN) + bottom), "white")
    draw = ImageDraw.Draw(sheet)
    for r, row in enumerate(rows):
        top = r * (height + MARGIN)
        if row_labels:
            draw.text((MARGIN // 2, top + height // 2), row_labels[r], fill="black", font=font, anchor="lm")
        for c, image in enumerate(row):
            sheet.paste(image.resize((width, height), Image.Resampling.NEAREST), (left + c * (width + MARGIN), top))
    for c, text in enumerate(lines):
        middle = left + c * (width + MARGIN) + width // 2
        draw.multiline_text(
            (middle, len(rows) * (height + MARGIN)), text, fill="black", font=font, anchor="ma", align="center"
        )
    return sheet


def labels_below(width: int, labels: Sequence[str]) -> Image.Image:
    """A white strip with the labels of a row of images of this width, each of at most MOST_LINES lines."""
    size = max(11, width // 24)
    font, line = ImageFont.load_default(size=size), round(1.3 * size)
    texts = [_shortened(_wrap(label, font, width - 2).splitlines()) for label in labels]
    strip = Image.new("RGB", (width * len(labels), line * max(len(text) for text in texts) + MARGIN), "white")
    for i, lines in enumerate(texts):
        cell = Image.new("RGB", (width, strip.height), "white")  # a long word is cut off at its image's edge
        place = (width // 2, MARGIN // 2)
        ImageDraw.Draw(cell).multiline_text(place, "\n".join(lines), "black", font, "ma", line - size, "center")
        strip.paste(cell, (i * width, 0))
    return strip


def _shortened(lines: list[str]) -> list[str]:
    return lines if len(lines) <= MOST_LINES else [*lines[: MOST_LINES - 1], f"{lines[MOST_LINES - 1]} …"]


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)
