"""Scores of images in a table: with intervals, between the bounds to read them by, and their paired differences."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t2i.comparison.score_significance import score_difference, score_interval
from t2i.comparison.significance import LEVEL, holm
from t2i.comparison.wording import places, signed
from t2i.evaluation.image_metrics.metric import Pictures
from t2i.runs.scores_file import StoredScores

Labelled = Sequence[tuple[str, Mapping[str, StoredScores]]]


def score_cell(scores: StoredScores | None) -> str:
    """The score with its interval; – where the metric has no meaning."""
    if scores is None:
        return "–"
    low, high = score_interval(scores.values)
    digits = places(high - low)
    return f"{scores.value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]".replace("-", "−")


def bounds(evaluation: Any, pictures: Pictures, device: Any) -> list[tuple[str, dict[str, StoredScores]]]:
    """What to read a score by: that of real images, and that of images that ignore their prompts."""
    prompts, rows = evaluation.battery.prompts, []
    if evaluation.reference_of is not None:
        rows.append(("real images", evaluation.score(evaluation.references, device, prompts)))
    if len(prompts) > 1:
        order = np.random.default_rng(0).permutation(len(prompts))
        other = dict(zip(order, np.roll(order, 1), strict=True))  # a fixed permutation that moves every prompt
        shuffled = [prompts[other[place]] for place in range(len(prompts))]
        rows.append(("shuffled prompts", evaluation.score(pictures, device, shuffled)))
    return [row for row in rows if row[1]]


def difference_rows(rows: Labelled) -> list[list[str]]:
    """Label, metric, difference, p and verdict for all rows but the first, which they are compared with."""
    (_, baseline), *others = rows
    tests = [
        (label, name, scores[name], score_difference(scores[name].values[None], baseline[name].values[None]))
        for label, scores in others
        for name in baseline
        if _comparable(scores.get(name), baseline[name])
    ]
    adjusted = holm([found.p for *_, found in tests])
    lines = []
    for (label, name, scores, found), p in zip(tests, adjusted, strict=True):
        verdict = "within noise"
        if p < LEVEL:
            verdict = "better" if (found.estimate > 0) == (scores.better == "higher") else "worse"
        lines.append([label, name, signed(found), "<0.001" if p < 0.001 else f"{p:.3f}", verdict])
    return lines


def notes(rows: Labelled) -> list[str]:
    """Warnings of the metrics, and which scores can't be compared."""
    (_, baseline), *others = rows
    found = [f"{name}: {note}" for _, scores in rows for name, score in scores.items() for note in score.notes]
    for label, scores in others:
        apart = [name for name in baseline if not _comparable(scores.get(name), baseline[name])]
        found += [f"{label} can't be compared by {name}: it was computed with another network or set" for name in apart]
    return list(dict.fromkeys(found))


def _comparable(scores: StoredScores | None, baseline: StoredScores) -> bool:
    if scores is None or scores.identity != baseline.identity:
        return False
    return scores.values.shape == baseline.values.shape and len(baseline.values) > 1
