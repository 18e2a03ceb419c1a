"""How large a comparison has to be to find a difference, and how large it is cheapest."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from t2i.comparison.power import POWER, Pilot, Size, Variances, power

FEWEST_IMAGES = 8
FEWEST_LEVELS = 8
MOST_SEEDS = 1000
GROWTH = 1.1  # from one number of seeds that is tried to the next


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
        best = None
        for levels in self._levels():
            for largest in self._numbers_of_seeds(levels):
                least = hours(replace(largest, images=min(FEWEST_IMAGES, self.most_images)))
                if best is not None and least >= hours(best):
                    break
                if (found := self.images(largest)) and (best is None or hours(found) < hours(best)):
                    best = found
        return best

    def _levels(self) -> Sequence[int]:
        now = self.pilot.size.levels
        if not (self.pilot.image_noise or self.pilot.rest_noise):
            return [now]
        return sorted({max(now // 2, min(now, FEWEST_LEVELS)), now, 2 * now, 4 * now})

    def _numbers_of_seeds(self, levels: int) -> Iterator[Size]:
        """Sizes with the most images: of the fewest seeds that suffice so, and of more, which may need few images."""
        largest = Size(1, self.most_images, levels)
        found = largest if self.pilot.size.seeds == 1 else self.seeds(largest)
        if found is None:
            return
        yield found
        while self.pilot.size.seeds > 1 and found.seeds < MOST_SEEDS:
            found = replace(found, seeds=min(max(found.seeds + 1, round(GROWTH * found.seeds)), MOST_SEEDS))
            yield found
