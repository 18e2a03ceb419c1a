"""Images that another tool has drawn: a folder of files that are named by their prompts."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from t2i.config import ConfigError
from t2i.data.images import SUFFIXES, formats, upright
from t2i.runs.image_files import INDEX, read_images
from t2i.runs.links import read_regular
from t2i.runs.text import one_line, printable

NUMBERED = re.compile(r"(?P<name>.*?)[ _.-]*\(?\d+\)?")
LARGEST = 100_000  # bytes of a text file with a prompt
SHOWN = 3  # prompts without images that a message names


@dataclass(frozen=True)
class FolderImages:
    """P × S images, as a metric takes them: those of the first prompt, then those of the second ..."""

    files: Sequence[Path]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Image.Image:
        file = self.files[index]
        try:
            with Image.open(file, formats=formats()) as opened:
                return upright(opened)
        except Exception as error:  # Pillow raises almost anything for damaged files
            raise ConfigError(f"{file} can't be read ({one_line(error)}); replace it") from error


def by_prompt(folder: Path) -> dict[str, list[Path]]:
    """Prompt -> its images, sorted by name.

    A folder of an evaluation has an index. Elsewhere the prompt is the text in the file next to an image, as in
    `0001.png` and `0001.txt`; or else the image's name without its number, as in `red apple-0.png`, `red_apple_1.png`.
    """
    if (folder / INDEX).is_file():  # of an evaluation
        images = read_images(folder)
        return {prompt: [images.file(i, seed) for seed in images.seeds] for i, prompt in enumerate(images.prompts)}
    found = defaultdict(list)
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in SUFFIXES and file.is_file():
            found[_prompt(file)].append(file)
    if not found:
        raise ConfigError(f"{printable(str(folder))} holds neither a model nor images; give a run, a model or images")
    return dict(found)


def _prompt(file: Path) -> str:
    text = file.with_suffix(".txt")
    if text.is_file():
        try:
            return read_regular(text, LARGEST).strip()
        except (OSError, ValueError) as error:
            raise ConfigError(f"{text} can't be read ({one_line(error)}); it must hold the image's prompt") from error
    numbered = NUMBERED.fullmatch(file.stem)
    name = numbered["name"] if numbered and numbered["name"] else file.stem
    return name.replace("_", " ").strip()


def images_of(folder: Path, prompts: Sequence[str], seeds: int) -> FolderImages:
    """The images of these prompts, `seeds` of each. Raises ConfigError if some are missing."""
    known = {_plain(prompt): files for prompt, files in by_prompt(folder).items()}
    files = [known.get(_plain(prompt), []) for prompt in prompts]
    lacking = [prompt for prompt, own in zip(prompts, files, strict=True) if len(own) < seeds]
    if lacking:
        raise ConfigError(
            f"{printable(str(folder))} lacks {seeds} images each for {len(lacking)} of {len(prompts)} prompts, such as "
            f"{', '.join(map(repr, lacking[:SHOWN]))}; name an image by its prompt, as in 'red apple-0.png', or write "
            "the prompt into a .txt file next to it"
        )
    return FolderImages([file for own in files for file in own[:seeds]])


def _plain(prompt: str) -> str:
    """A prompt as file names can hold it: lower case, and words only."""
    return " ".join(re.findall(r"\w+", prompt.casefold().replace("_", " ")))
