"""How large a comparison has to be to find a difference, and how large it is cheapest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from t2i.comparison.power import POWER, Pilot, Size, Variances, power

FEWEST_IMAGES = 8
FEWEST_LEVELS = 8
MOST_SEEDS = 1000
SEEDS_TRIED = 5  # beyond the fewest that suffice: more seeds may need so many fewer images that they are cheaper


@dataclass(frozen=True)
class Goal:
    """What a comparison is to find."""

    difference: float  # of log errors; of scores, the difference itself
    power: float = POWER
    comparisons: int = 1  # made at once, with Holm's correction


def fewest(suffices: Callable[[int], bool], least: int, most: int) -> int | None:
    """The smallest number from `least` to `most` that suffices, as all larger ones do; None if there is none."""
    if not suffices(most):
        return None
    low = least - 1
    while most - low > 1:
        middle = (low + most) // 2
        low, most = (low, middle) if suffices(middle) else (middle, most)
    return most


class Planner:
    """Sizes of a comparison that find a difference, as far as a pilot can tell."""

    def __init__(self, pilot: Pilot, goal: Goal, most_images: int, variances: Variances | None = None):
        """variances: taken for the true ones; None: all that fit the pilot."""
        self.pilot, self.goal, self.most_images = pilot, goal, most_images
        self.variances = variances or pilot.plausible()

    def as_if_exact(self) -> "Planner":
        """The same, with the pilot's variances taken for the true ones."""
        return Planner(self.pilot, self.goal, self.most_images, self.pilot.exact())

    def power(self, size: Size) -> float:
        return power(self.pilot, size, self.goal.difference, self.goal.comparisons, self.variances)

    def _suffices(self, size: Size) -> bool:
        return self.power(size) >= self.goal.power

    def seeds(self, size: Size) -> Size | None:
        """The fewest seeds that suffice with the images and levels of `size`; None if none do, or the pilot has one."""
        if self.pilot.size.seeds == 1:
            return None
        found = fewest(lambda seeds: self._suffices(replace(size, seeds=seeds)), 2, MOST_SEEDS)
        return None if found is None else replace(size, seeds=found)

    def images(self, size: Size) -> Size | None:
        """The same for images."""
        least = min(FEWEST_IMAGES, self.most_images)
        found = fewest(lambda images: self._suffices(replace(size, images=images)), least, self.most_images)
        return None if found is None else replace(size, images=found)

    def levels(self, size: Size) -> Size | None:
        """The same for levels, up to 8 times as many."""
        found = fewest(lambda levels: self._suffices(replace(size, levels=levels)), size.levels, 8 * size.levels)
        return None if found is None else replace(size, levels=found)

    def cheapest(self, hours: Callable[[Size], float]) -> Size | None:
        """The cheapest size that suffices; images and levels make up for what seeds, of which a few are many, leave."""
        found = [size for levels in self._levels() for size in self._with_levels(levels, hours)]
        return min(found, key=hours, default=None)

    def _levels(self) -> Sequence[int]:
        now = self.pilot.size.levels
        if not (self.pilot.image_noise or self.pilot.rest_noise):
            return [now]
        return sorted({max(now // 2, min(now, FEWEST_LEVELS)), now, 2 * now, 4 * now})

    def _with_levels(self, levels: int, hours: Callable[[Size], float]) -> list[Size]:
        """For each number of seeds that may be the cheapest, the fewest images."""
        largest = Size(1, self.most_images, levels)
        if self.pilot.size.seeds == 1:
            found = self.images(largest)
            return [found] if found else []
        first = self.seeds(largest)
        sizes = [replace(first, seeds=first.seeds + more) for more in range(SEEDS_TRIED)] if first else []
        return [found for size in sizes if (found := self.images(size))]
