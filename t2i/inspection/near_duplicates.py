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
BLOCK, CHUNK = 1024, 8192  # images that are compared with all others at a time; pairs whose colours are
MOST_PAIRS = 100_000

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
    """The pairs of near duplicates, the most alike first; MOST_PAIRS at most. progress: iterates over the blocks."""
    straight, turned = (
        np.array([getattr(each, name) for each in looks], dtype=np.uint64) for name in ("bits", "mirrored")
    )
    colours = np.array([each.colours for each in looks], dtype=np.int16).reshape(-1, GRID, GRID, 3)
    pairs: list[Pair] = []
    for start in progress(range(0, len(looks), BLOCK)):
        rows = slice(start, start + BLOCK)
        for mirrored, hashes in ((False, straight), (True, turned)):
            bits = np.bitwise_count(hashes[rows, None] ^ straight[None, start:])
            first, second = np.nonzero(bits <= MOST_BITS)
            first, second = first[second > first], second[second > first]
            for part in range(0, len(first), CHUNK):
                i, j = first[part : part + CHUNK], second[part : part + CHUNK]
                alike = _same_colours(colours[start + i], colours[start + j], mirrored)
                found = zip(i[alike].tolist(), j[alike].tolist(), strict=True)
                pairs += [Pair(start + one, start + other, int(bits[one, other]), mirrored) for one, other in found]
                if len(pairs) >= 2 * MOST_PAIRS:  # each pair may be found twice, as it is and mirrored
                    break
    best: dict[tuple[int, int], Pair] = {}
    for pair in sorted(pairs, key=lambda pair: (pair.bits, pair.mirrored, pair.first, pair.second)):
        best.setdefault((pair.first, pair.second), pair)
    return list(best.values())[:MOST_PAIRS]


def _same_colours(one: np.ndarray, other: np.ndarray, mirrored: bool) -> np.ndarray:
    """Whether images are alike in their colours, [N, GRID, GRID, 3] each."""
    difference = (one - (other[:, :, ::-1] if mirrored else other)).reshape(len(one), -1)
    return (difference.std(1) <= MOST_COLOUR) & (np.abs(difference.mean(1)) <= MOST_BRIGHTNESS)


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
