"""Captions in text files next to the images: IMAGE.txt or IMAGE.caption."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from t2i.data.file_names import composed
from t2i.data.folder_files import Files
from t2i.data.metadata_files import LONGEST
from t2i.data.text_files import decoded, is_western

log = logging.getLogger(__name__)
SUFFIXES = (".txt", ".caption")


@dataclass
class CaptionFiles:
    """The text files of a folder. captions: by image. problems: of the images that have none."""

    root: Path
    files: Files
    per_line: bool  # each line is a caption of its own; else the lines are joined to one
    captions: dict[str, object] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    suffixes: dict[str, str] = field(default_factory=dict)  # by image: that of its text file
    used: set[str] = field(default_factory=set)  # the text files that belong to an image
    long: list[str] = field(default_factory=list)  # those of several lines
    western: list[str] = field(default_factory=list)  # those that are read as Latin-1

    def describe(self, images: Sequence[str], no_text: str) -> None:
        """Find the captions of some images. no_text: the problem of an image without a text file."""
        texts = self._texts_of(images)
        readers = defaultdict(list)
        for image in images:
            for text in texts[image]:
                readers[text].append(image)
        self.used |= readers.keys()
        for image in images:
            if image in self.files.outside:
                self.problems[image] = self.files.outside[image]
            elif not texts[image]:
                self.problems[image] = no_text
            elif len(texts[image]) > 1:
                self.problems[image] = f"has captions in {' and in '.join(texts[image])}; remove all but one of them"
            elif len(readers[texts[image][0]]) > 1:
                self.problems[image] = f"shares {texts[image][0]} with another image; rename one of them"
            elif problem := self._problem(texts[image][0]):
                self.problems[image] = f"can't be used: {texts[image][0]} {problem}"
            else:
                self._read(image, texts[image][0])

    def tell(self) -> None:
        """Say how files of several lines, and those in no UTF, were read."""
        if self.western:
            log.info(
                "%d of %d caption files are not in UTF-8 and are read as Windows' Latin-1 (%s); if letters are wrong, "
                "save them in UTF-8",
                *(len(self.western), len(self.used), self.western[0]),
            )
        if self.long:
            how = "each line is a caption of its own, of which one is drawn for each use"
            if not self.per_line:
                how = "the lines are joined to one caption; dataset.captions_per_line=true makes each a caption"
            log.info(
                "%d of %d caption files have several lines (%s): %s", len(self.long), len(self.used), self.long[0], how
            )

    def unused(self) -> list[str]:
        """The text files that belong to no image."""
        return [name for name in self.files.stats if _suffix(name) in SUFFIXES and name not in self.used]

    def _texts_of(self, images: Sequence[str]) -> dict[str, list[str]]:
        """The text files of each image: those of its name without suffix, or with it, or with another upper case."""
        exact: dict[str, list[str]] = defaultdict(list)
        loose: dict[str, list[str]] = defaultdict(list)
        for name in self.files.stats:
            if _suffix(name) in SUFFIXES:
                exact[composed(_stem(name))].append(name)
                loose[composed(_stem(name)).casefold()].append(name)
        texts = {image: exact.get(composed(_stem(image)), []) for image in images}
        taken = {text for own in texts.values() for text in own}
        for image in [image for image, own in texts.items() if not own]:  # a.png.txt, as some tools write
            texts[image] = [text for text in exact.get(composed(image), []) if text not in taken]
        taken = {text for own in texts.values() for text in own}
        for image in [image for image, own in texts.items() if not own]:
            texts[image] = [text for text in loose.get(composed(_stem(image)).casefold(), []) if text not in taken]
        return texts

    def _problem(self, text: str) -> str:
        if text in self.files.outside:
            return self.files.outside[text]
        if (size := self.files.stats[text].st_size) > LONGEST:
            return f"has {size} bytes; a caption file may have {LONGEST}"
        return ""

    def _read(self, image: str, text: str) -> None:
        try:
            content = (self.root / text).read_bytes()
            lines = [line.strip() for line in decoded(content).splitlines() if line.strip()]
        except ValueError as error:
            self.problems[image] = f"can't be used: {text} can't be read ({error})"
            return
        self.suffixes[image] = _suffix(text)
        if is_western(content):
            self.western.append(text)
        if len(lines) > 1:
            self.long.append(text)
        self.captions[image] = lines if self.per_line or not lines else [" ".join(lines)]


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()
