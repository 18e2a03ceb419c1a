"""Whether judges agree with each other, and with themselves."""

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np


def alpha(units: Sequence[Hashable], values: np.ndarray) -> float:
    """Krippendorff's alpha of votes on the same pairs: 1 is perfect agreement, 0 what chance would give.

    units: what each vote is about, [N]; values: 1, ½ or 0, [N]. Disagreement is (v − w)², as two judges that contradict
    each other disagree more than one who sees no difference (Krippendorff 2011, "Computing Krippendorff's
    alpha-reliability"; interval metric). Units with one vote don't count. NaN if none has two, or if all votes are the
    same, which leaves nothing to agree on beyond chance.
    """
    votes = defaultdict(list)
    for unit, value in zip(units, values.tolist(), strict=True):
        votes[unit].append(value)
    shared = [np.array(several) for several in votes.values() if len(several) > 1]
    if not shared:
        return float("nan")
    pooled = np.concatenate(shared)
    # Σ over ordered pairs of (v − w)² is 2n²·Var, with Var the population variance
    observed = sum(2 * len(several) ** 2 * several.var() / (len(several) - 1) for several in shared) / len(pooled)
    expected = 2 * len(pooled) * pooled.var() / (len(pooled) - 1)
    return float(1 - observed / expected) if expected else float("nan")


def agreement(units: Sequence[Hashable], values: np.ndarray) -> tuple[float, int]:
    """The fraction of pairs of votes on the same images that are equal, and the number of such pairs."""
    votes = defaultdict(list)
    for unit, value in zip(units, values.tolist(), strict=True):
        votes[unit].append(value)
    equal = total = 0
    for several in votes.values():
        counts = np.unique(several, return_counts=True)[1]
        equal += int((counts * (counts - 1)).sum()) // 2
        total += len(several) * (len(several) - 1) // 2
    return (equal / total if total else float("nan")), total
