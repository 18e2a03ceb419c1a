"""Masks of images in a folder: the opaque part of the image itself, or the white part of another image."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from t2i.config import ConfigError
from t2i.data.file_names import composed
from t2i.data.folder_files import Files, walk
from t2i.data.images import SUFFIXES, Facts, brightness, opacity, read
from t2i.data.scanned_files import scan

log = logging.getLogger(__name__)
ALPHA, BESIDE = "alpha", "beside"
ENDINGS = ("-masklabel", "_mask", "-mask", ".mask")  # of NAME in NAME-masklabel.png; the first is OneTrainer's
SHAPES_DIFFER = 0.02  # by how much the ratio of width to height of a mask may differ from that of its image


@dataclass(frozen=True)
class Mask:
    """Which part of an image is trained on."""

    content: Callable[[], bytes]  # of the image that shows it
    facts: Facts
    of_alpha: bool  # how opaque that image is, rather than how bright

    def problem(self, image: Facts) -> str:
        """Why it can't be the mask of an image, as the rest of a sentence that begins with the image's name."""
        if self.facts.problem:
            return f"has a mask that {self.facts.problem}"
        ratio = (self.facts.width / self.facts.height) / (image.width / image.height)
        if abs(ratio - 1) > SHAPES_DIFFER:
            mine, its = f"{image.width}×{image.height}", f"{self.facts.width}×{self.facts.height}"
            return f"is {mine} pixels, and its mask {its}: the shapes differ"
        return ""

    def pixels(self, size: tuple[int, int]) -> Image.Image:
        """The mask in the size of its image, width and height, 8 bits a pixel."""
        shown = read(self.content(), opacity if self.of_alpha else brightness)
        return shown if shown.size == size else shown.resize(size, Image.Resampling.BOX)


class MaskFiles:
    """The masks of the images of a folder, as dataset.masks says where they are."""

    def __init__(self, root: Path, files: Files, masks: str | None, follow_links: bool):
        """Raises ConfigError if there is no such folder of masks."""
        self.root, self.files, self.masks = root, files, masks
        images = [name for name in files.stats if _is_image(name)]
        stems = {_stem(name): name for name in images}
        # Those that look like the mask of another image, with that image.
        self.beside = {name: stems[base] for name in images if (base := _base(name)) in stems}
        self.folder, self.found, self.facts = root, dict[str, list[str]](), dict[str, Facts]()
        if masks is None or masks == ALPHA:
            return
        if masks == BESIDE:
            self.found = _by_key((base, name) for name, base in self.beside.items())
            return
        self.folder = Path(masks).expanduser()
        if not self.folder.is_dir():
            raise ConfigError(f"dataset.masks={masks} is not a folder; use a folder of masks, or {ALPHA} or {BESIDE}")
        theirs = walk(self.folder, follow_links)
        inside = theirs.stats.keys() - theirs.outside.keys()
        stats = {name: theirs.stats[name] for name in sorted(inside) if _is_image(name)}
        by_stem = _by_key((_stem(name), name) for name in stats)
        self.found = {name: by_stem[_stem(name)] for name in images if _stem(name) in by_stem}
        self.facts = scan(self.folder, stats)

    def among(self) -> list[str]:
        """The masks that lie among the images."""
        return list(self.beside) if self.masks == BESIDE else []

    def without(self, images: Iterable[str]) -> list[str]:
        """Those that are no masks."""
        if self.masks == BESIDE:
            return [name for name in images if name not in self.beside]
        if self.masks in (None, ALPHA) or not self.folder.resolve().is_relative_to(self.root.resolve()):
            return list(images)
        inside = self.folder.resolve().relative_to(self.root.resolve()).as_posix() + "/"
        return [name for name in images if not name.startswith(inside)]

    def of(self, image: str, facts: Mapping[str, Facts]) -> tuple[Mask | None, str]:
        """The mask of an image, if it has one; and the problem with it. facts: of images, and masks `among` them."""
        if self.masks is None or facts[image].problem:
            return None, ""
        if self.masks == ALPHA:
            return Mask((self.root / image).read_bytes, facts[image], of_alpha=True), ""
        names = self.found.get(image, [])
        if len(names) > 1:
            return None, f"has masks in {' and in '.join(sorted(names))}; remove all but one of them"
        if not names:
            return None, ""
        theirs = facts if self.masks == BESIDE else self.facts
        mask = Mask((self.folder / names[0]).read_bytes, theirs[names[0]], of_alpha=False)
        return mask, mask.problem(facts[image])

    def hint(self, image: str) -> str:
        """What to do with an image that looks like the mask of another; empty if it does not."""
        if self.masks is not None or image not in self.beside:
            return ""
        return f"looks like the mask of {self.beside[image]}; use dataset.masks={BESIDE}, or rename it"

    def tell(self, masks: Sequence[Mask | None]) -> None:
        """Say how many images have one."""
        if self.masks in (None, ALPHA):
            return
        number = sum(mask is not None for mask in masks)
        if not number:
            where = f"such as NAME{ENDINGS[0]}.png" if self.masks == BESIDE else "with the names of the images"
            raise ConfigError(f"dataset.masks={self.masks}: no image has a mask there, {where}")
        others = len(masks) - number
        rest = f"; the other {others} count as a whole" if others else ""
        log.info("dataset.masks=%s: %d of %d images have a mask%s", self.masks, number, len(masks), rest)


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def _stem(name: str) -> str:
    return composed(name.rpartition(".")[0])


def _base(name: str) -> str:
    """The stem of the image that a file would be the mask of, by its name; empty if it has no such name."""
    stem = _stem(name)
    return next((stem.removesuffix(ending) for ending in ENDINGS if stem.endswith(ending)), "")


def _by_key(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    grouped = defaultdict(list)
    for key, name in pairs:
        grouped[key].append(name)
    return dict(grouped)
