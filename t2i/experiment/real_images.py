"""Real images beside the samples: those of the data set whose caption is the prompt, held-out ones first."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

from t2i.data.splits import Captioned, Split
from t2i.runs.samples_file import REAL, write_samples

SIDE = 256  # pixels; larger images are scaled down


def real_images(prompts: Sequence[str], data: Captioned) -> list[Image.Image | None]:
    """An image for each prompt, in RGB; None where no caption is the prompt, whatever its case and blanks."""
    found: dict[str, Image.Image] = {}
    wanted = {_plain(prompt) for prompt in prompts}
    for split in (data.validation, data.train):
        if not isinstance(split, Split):  # a stream, which is not searched
            continue
        for index, captions in enumerate(split.captions):
            for caption in wanted.intersection(map(_plain, captions)) - found.keys():
                found[caption] = Image.fromarray(split.pixels(index))
        if len(found) == len(wanted):
            break
    return [found.get(_plain(prompt)) for prompt in prompts]


def write_real_images(run: Path, prompts: Sequence[str], data: Captioned) -> None:
    """Write samples/real.png, unless the data set has no image of any prompt."""
    images = real_images(prompts, data)
    file = run / "samples" / REAL
    if not (sizes := [max(image.size) for image in images if image is not None]):
        file.unlink(missing_ok=True)  # of other prompts
        return
    side = min(SIDE, max(sizes))
    squares = [
        ImageOps.pad(image, (side, side), color="white") if image else Image.new("RGB", (side, side), "white")
        for image in images
    ]
    file.parent.mkdir(exist_ok=True)
    write_samples(file, squares, [text if image else "" for text, image in zip(prompts, images, strict=True)])


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
