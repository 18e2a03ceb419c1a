"""Near duplicates: images that are the same but for their size, compression, slight changes, or a mirror.

Two images are taken for near duplicates if their hashes differ in few bits and their colours, averaged over a coarse
grid, are alike. The hash is pHash (Zauner 2010, "Implementation and benchmarking of perceptual image hash functions",
section 3.2): which of the lowest frequencies of the grey image are above their median. It knows no colours, and flat
drawings have few frequencies, hence the second condition. Crops and turned images are not found.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

SIDE, LOW = 32, 8  # pixels of the grey image; frequencies on each side
GRID = 8  # squares on each side, whose colours are compared
MOST_BITS = 8  # of 64 that may differ
MOST_COLOUR = 8.0  # root mean square difference of colours, of 255, beside that of their brightness
MOST_BRIGHTNESS = 40.0  # mean difference
BLOCK = 1024  # images that are compared with all others at a time

# DCT-II: the k-th row has cos(pi k (2n + 1) / 2N), n = 0 ... N-1
_DCT = np.cos(np.pi * np.arange(LOW)[:, None] * (2 * np.arange(SIDE) + 1) / (2 * SIDE))
_MIRROR = np.where(np.arange(LOW) % 2, -1.0, 1.0)  # what mirroring does to the k-th frequency across


@dataclass(frozen=True)
class Look:
    """What an image is compared by."""

    bits: int  # 64 of them
    mirrored: int  # those of the mirrored image
    colours: np.ndarray  # [GRID, GRID, 3] uint8


@dataclass(frozen=True)
class Pair:
    """Two images, by their numbers."""

    first: int
    second: int
    bits: int  # that differ
    mirrored: bool


def look(image: Image.Image) -> Look:
    """image: in RGB."""
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    frequencies = _DCT @ grey @ _DCT.T
    colours = np.asarray(image.resize((GRID, GRID), Image.Resampling.BOX))
    return Look(_bits(frequencies), _bits(frequencies * _MIRROR), colours)


def _bits(frequencies: np.ndarray) -> int:
    above = frequencies > np.median(frequencies)
    return int.from_bytes(np.packbits(above).tobytes(), "big")


def near(looks: Sequence[Look], progress: Callable[[Sequence[int]], Iterable[int]] = iter) -> list[Pair]:
    """The pairs of near duplicates, the most alike first. progress: iterates over the blocks of images."""
    straight, turned = (
        np.array([getattr(each, name) for each in looks], dtype=np.uint64) for name in ("bits", "mirrored")
    )
    pairs = []
    for start in progress(range(0, len(looks), BLOCK)):
        rows = slice(start, start + BLOCK)
        as_it_is = np.bitwise_count(straight[rows, None] ^ straight[None, start:])
        as_mirrored = np.bitwise_count(turned[rows, None] ^ straight[None, start:])
        first, second = np.nonzero(np.minimum(as_it_is, as_mirrored) <= MOST_BITS)
        for i, j in zip(*(places[second > first].tolist() for places in (first, second)), strict=True):
            bits = int(as_it_is[i, j]), int(as_mirrored[i, j])
            if pair := _pair(looks, start + i, start + j, bits):
                pairs.append(pair)
    return sorted(pairs, key=lambda pair: (pair.bits, pair.first, pair.second))


def _pair(looks: Sequence[Look], i: int, j: int, bits: tuple[int, int]) -> Pair | None:
    """The pair if its colours are alike, too. bits: that differ from the image, and from its mirror image."""
    for mirrored in (False, True):
        other = looks[j].colours[:, ::-1] if mirrored else looks[j].colours
        difference = looks[i].colours.astype(np.float64) - other
        alike = difference.std() <= MOST_COLOUR and abs(difference.mean()) <= MOST_BRIGHTNESS
        if bits[mirrored] <= MOST_BITS and alike:
            return Pair(i, j, bits[mirrored], mirrored)
    return None


def groups(pairs: Iterable[Sequence[int]]) -> list[list[int]]:
    """The images that pairs connect, directly or through others, the largest groups first."""
    root: dict[int, int] = {}

    def find(place: int) -> int:
        root.setdefault(place, place)
        while root[place] != place:
            root[place] = root[root[place]]
            place = root[place]
        return place

    for first, second in pairs:
        one, other = find(first), find(second)
        root[max(one, other)] = min(one, other)
    members: dict[int, list[int]] = {}
    for place in sorted(root):
        members.setdefault(find(place), []).append(place)
    return sorted(members.values(), key=lambda group: (-len(group), group))
