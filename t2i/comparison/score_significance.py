"""Whether the images of one model score higher than another's by more than chance: the difference and its interval."""

import numpy as np

from t2i.comparison.significance import Difference, Table, infer
from t2i.config import ConfigError

WILSON = 1.959964  # the critical value of the normal distribution


def score_difference(scores: np.ndarray, baseline: np.ndarray) -> Difference:
    """The difference between the mean scores of R runs and those of the baseline's runs with the same training seeds.

    scores, baseline: [R, P, S], of P prompts with S images of each, which are paired by their noise; for the distances
    of distributions pseudo-values, [R, G, 1]. An image belongs to its prompt, so the mean over a prompt's images counts
    once; prompts and training seeds are crossed random effects.
    """
    if scores.ndim != 3 or scores.shape != baseline.shape:
        raise ValueError(f"scores of shape {scores.shape} and {baseline.shape} can't be paired; both must be [R, P, S]")
    if scores.shape[1] < 2:
        raise ConfigError("one prompt can't tell a difference from chance; evaluate at least 2")
    return infer([score_table(scores, baseline)])


def score_table(scores: np.ndarray, baseline: np.ndarray) -> Table:
    """The differences that `score_difference` tests; its arguments are the same."""
    table = (scores - baseline).mean(-1)
    return Table(table.mean(1), table, table.shape[1])


def score_interval(scores: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a model's mean score over other prompts and noise; scores: [P, S], as above.

    Where all prompts of a metric that is 0 or 1 agree, it is Wilson's (1927) for P trials.
    """
    by_prompt = scores.mean(-1)
    if len(by_prompt) < 2:
        return -np.inf, np.inf
    if np.isin(scores, (0, 1)).all() and np.ptp(by_prompt) == 0:
        z2 = WILSON**2 / len(by_prompt)
        middle, half = (by_prompt[0] + z2 / 2) / (1 + z2), z2 / 2 / (1 + z2)
        return max(middle - half, 0.0), min(middle + half, 1.0)
    one = infer([Table(by_prompt.mean(keepdims=True), by_prompt[None], len(by_prompt))])
    return one.low, one.high
