"""Runs that hold out different folds of one data set: together they measure every image once.

The errors of a variant's folds with one seed are put together, [N, K] over all images. Images of one fold share a
trained model, so the folds, not the images, are the units of the statistics.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from t2i.comparison.results import Result
from t2i.evaluation.metrics import Metric
from t2i.evaluation.score_metric import ScoreMetric

Runs = Mapping[tuple, Result]  # of a variant, by the key that pairs them: (seed, ...), a fold at the end


def complete(runs: Runs, pairs: Sequence[tuple]) -> list[tuple]:
    """The pairs of the seeds that have all folds; if no seed has, those of the folds that all seeds have."""
    by_seed = _by_seed(runs, pairs)
    if len({len(row) for row in by_seed}) <= 1:
        return list(pairs)
    folds = [{runs[pair].fold for pair in row} for row in by_seed]
    every, shared = set.union(*folds), set.intersection(*folds)
    if every in folds:
        return [pair for row, found in zip(by_seed, folds, strict=True) if found == every for pair in row]
    return [pair for row in by_seed for pair in row if runs[pair].fold in shared]


def missing(variants: dict[str, Sequence[Result]], number: int) -> list[str]:
    """Warnings of variants without some of the `number` folds."""
    warnings = []
    for label, runs in variants.items():
        if lost := set(range(number)) - {run.fold for run in runs}:
            listed = ", ".join(map(str, sorted(lost)))
            warnings.append(f"{label}: no run of fold {listed}, so the images held out there are in no estimate.")
    return warnings


def stacked(runs: Runs, pairs: Sequence[tuple], prefix: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Errors of the pairs' runs, [S, N, K]; and each image's fold, [N], if there are folds.

    Reference images (ref/) are the same in every fold: each run counts as one of a further seed.
    """
    if runs[pairs[0]].fold is None or prefix.startswith("ref/"):
        return np.stack([runs[pair].errors[prefix] for pair in pairs]), None
    by_seed = _by_seed(runs, pairs)
    folds = np.repeat(range(len(by_seed[0])), [len(runs[pair].errors[prefix]) for pair in by_seed[0]])
    return np.stack([np.concatenate([runs[pair].errors[prefix] for pair in row]) for row in by_seed]), folds


def values(runs: Runs, metric: Metric | ScoreMetric) -> np.ndarray:
    """The metric of each run; of runs with folds, that of each seed, over the images of all of its folds."""
    pairs = complete(runs, list(runs))
    if runs[pairs[0]].fold is None or isinstance(metric, ScoreMetric):
        return np.array([run.value(metric) for run in runs.values()])
    prefixes = [prefix for prefix in (metric.prefix, metric.against) if prefix is not None]
    if not all(metric.measured_in(runs[pair].errors) for pair in pairs):
        return np.array([np.nan])
    tables = {prefix: stacked(runs, pairs, prefix)[0] for prefix in prefixes}
    return np.array([metric.of(dict(zip(prefixes, row, strict=True))) for row in zip(*tables.values(), strict=True)])


def _by_seed(runs: Runs, pairs: Sequence[tuple]) -> list[list[tuple]]:
    """The pairs of each seed, in the order of their folds."""
    rows: dict[tuple, list[tuple]] = defaultdict(list)
    for pair in sorted(pairs, key=lambda pair: runs[pair].fold or 0):
        rows[pair if runs[pair].fold is None else pair[:-1]].append(pair)
    return list(rows.values())
