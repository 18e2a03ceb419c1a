"""Metrics of images as a comparison sees them: of the image battery that all compared runs have."""

from collections import Counter
from collections.abc import Sequence

from t2i.comparison.results import Result
from t2i.evaluation.score_metric import ScoreMetric


def score_metrics(runs: Sequence[Result]) -> list[ScoreMetric]:
    """The metrics of images that all runs have, of one battery: that with the most of them, of equals the latest."""
    shared = set.intersection(*({(battery, name) for battery, name in run.scores} for run in runs)) if runs else set()
    if not shared:
        return []
    counts = Counter(battery for battery, _ in sorted(shared))
    battery = max(counts, key=lambda battery: (counts[battery], _is_own(runs[0], battery), battery))
    names = sorted(name for found, name in shared if found == battery)
    alike = [name for name in names if len({_kind(run, battery, name) for run in runs}) == 1]
    return [ScoreMetric(name, runs[0].scores[battery, name].better, battery) for name in alike]


def score_notes(runs: Sequence[Result], metric: ScoreMetric) -> list[str]:
    """Warnings of the metric itself."""
    notes = [note for run in runs for note in run.scores[metric.battery, metric.name].notes]
    return [f"{metric.name}: {note}" for note in dict.fromkeys(notes)]


def _kind(run: Result, battery: str, name: str) -> tuple:
    """What must be the same for scores to be compared: the network, the references, the shape."""
    scores = run.scores[battery, name]
    return scores.identity, scores.better, scores.values.shape


def _is_own(run: Result, battery: str) -> bool:
    """Whether the battery has the guidance of the run's own settings."""
    guidance = {images.hash: images.settings.get("guidance_scale") for images in run.images}
    return guidance.get(battery) == run.config.get("evaluation.guidance_scale")
