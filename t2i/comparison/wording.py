"""A comparison in words: the verdicts as sentences, and the formats of numbers."""

import numpy as np

from t2i.comparison.excerpt import several
from t2i.comparison.image_scores import score_notes
from t2i.comparison.sensitivity import could_have_found
from t2i.comparison.significance import Difference
from t2i.comparison.verdicts import AnyMetric, Comparison, Verdict
from t2i.evaluation.score_metric import ScoreMetric

FEW_IMAGES = 10  # with fewer, the interval is as wide as a handful of images makes it


def sentences(comparison: Comparison, metric: AnyMetric) -> list[tuple[str, str]]:
    """(outcome, sentence) for every verdict; at the end ("scope", what the intervals cover)."""
    verdicts = comparison.verdicts(metric)
    if not verdicts:
        return []
    most_seeds, tests = max(verdict.seeds for verdict in verdicts), comparison.num_tests(metric)
    spoken = []
    for verdict in verdicts:
        sentence = _sentence(verdict, metric, comparison.baseline.label, tests)
        few = _few_images(comparison, verdict, metric)
        seeds = " with one seed" if verdict.seeds == 1 and most_seeds > 1 else ""
        bins = _bins_clause(verdict) if metric.snr_bin is None and verdict.bins else ""
        unseen = could_have_found(comparison, verdict, metric, tests) if _found_nothing(verdict, metric) else ""
        spoken.append((verdict.outcome, f"{sentence}{seeds}{few}{bins}. {unseen}".rstrip()))
    notes = score_notes(comparison.runs, metric) if isinstance(metric, ScoreMetric) else []
    return [*spoken, *(("note", note) for note in notes), ("scope", f"{_scope(verdicts)}{_folds_clause(comparison)}")]


def _found_nothing(verdict: Verdict, metric: AnyMetric) -> bool:
    return verdict.outcome == "same" and metric.snr_bin is None


def verdict_word(verdict: Verdict) -> str:
    """The verdict for a table's cell."""
    if verdict.outcome != "same":
        return verdict.outcome
    return "not proven" if verdict.lost_by_correction else "within noise"


def word_notes(verdicts: list[Verdict], tests: int | None = None) -> str:
    """What the words of the verdicts that claim no difference mean, as far as they occur; "" if none does.

    tests: the number of comparisons, if there are more than these.
    """
    words = {verdict_word(verdict) for verdict in verdicts}
    notes = {
        "within noise": "p ≥ 0.05 even by itself",
        "not proven": f"p < 0.05 by itself, but not among {tests or len(verdicts)} comparisons",
    }
    told = [f"{word}: {note}" for word, note in notes.items() if word in words]
    return f"{'; '.join(told)}." if told else ""


def _few_images(comparison: Comparison, verdict: Verdict, metric: AnyMetric) -> str:
    """A warning if so few images were measured that what they are decides more than the noise does."""
    if isinstance(metric, ScoreMetric):
        return ""
    number = comparison.num_images(verdict.variant, metric)
    kind = {"train/": "training", "ref/": "reference"}.get(metric.prefix.removesuffix("ema/"), "held-out")
    return f", on only {number} {kind} image{'s' if number > 1 else ''}" if number < FEW_IMAGES else ""


def weights_name(metric: AnyMetric) -> str:
    return "averaged weights" if metric.averaged else "raw weights"


def _claim(metric: AnyMetric, outcome: str) -> str:
    """What a variant does if it is better or worse, such as "is better than"."""
    if metric.against is not None:
        return f"has a {'smaller' if outcome == 'better' else 'larger'} gap than"
    return {
        "train/": f"fits its training images {outcome} than",
        "ref/": f"is {outcome} on the reference images than",
    }.get(metric.prefix.removesuffix("ema/"), f"is {outcome} than")


def _sentence(verdict: Verdict, metric: AnyMetric, baseline: str, num_tests: int) -> str:
    total, label = verdict.total, verdict.variant.label
    if verdict.outcome == "same":
        kind = (
            f"that survives correction for {num_tests} comparisons"
            if verdict.lost_by_correction
            else "larger than the noise"
        )
        return f"{label}: no difference {kind}, {difference_text(total, metric)}"
    least, most = sorted((abs(total.low), abs(total.high)))
    if not metric.relative:
        digits = places(most - least)
        by = f"{abs(total.estimate):.{digits}f} [{least:.{digits}f}, {most:.{digits}f}]"
        return f"{label} is {verdict.outcome} than {baseline} by {by} in {metric.name}"
    by = f"{100 * abs(total.estimate):.1f} % [{100 * least:.1f}, {100 * most:.1f}]"
    return f"{label} {_claim(metric, verdict.outcome)} {baseline} by {by}"


def _bins_clause(verdict: Verdict) -> str:
    """The SNR bins in which it is better and worse, unless all bins have the same outcome as the metric."""
    if set(verdict.bin_outcomes) == {verdict.outcome}:
        return ""
    clauses = [
        f"{outcome} in {_bin_ranges([i for i, in_bin in enumerate(verdict.bin_outcomes) if in_bin == outcome])}"
        for outcome in ("better", "worse")
        if outcome in verdict.bin_outcomes
    ]
    return f"; {' and '.join(clauses)}" if clauses else ""


def _scope(verdicts: list[Verdict]) -> str:
    single = [verdict.variant.label for verdict in verdicts if verdict.seeds == 1]
    if len(single) == len(verdicts):
        return (
            "One seed: the intervals cover these trained models only, over other held-out images; another seed could "
            "reverse a result. Add seed=0,1,2 to the sweep to compare the variants themselves."
        )
    seeds = sorted({verdict.seeds for verdict in verdicts} - {1})
    scope = f"{' or '.join(map(str, seeds))} seeds: the intervals cover the variants, over other seeds and images"
    if single:
        scope += f"; for {several(single)}, with one seed, they cover the trained models only"
    return f"{scope}. A third seed would make them far narrower." if 2 in seeds else f"{scope}."


def _folds_clause(comparison: Comparison) -> str:
    if not (folds := {run.fold for run in comparison.runs} - {None}):
        return ""
    return (
        f" {len(folds)} folds: each image is measured by models that were not trained on it. The images of a fold "
        "share its models, so the folds, not the images, are counted."
    )


def _bin_ranges(bins: list[int]) -> str:
    """SNR bins 0–2, 5: neighbours are joined."""
    starts = [i for i in bins if i - 1 not in bins]
    ends = [i for i in bins if i + 1 not in bins]
    ranges = [str(start) if start == end else f"{start}–{end}" for start, end in zip(starts, ends, strict=True)]
    return f"SNR bin{'s' if len(bins) > 1 else ''} {', '.join(ranges)}"


def percent(fraction: float) -> str:
    """With a sign, and a typographic minus: −1.8 %."""
    return f"{100 * fraction:+.1f} %".replace("-", "−")


def number(value: float, digits: int = 4) -> str:
    """The value with this many significant digits; – for NaN and infinity."""
    if not np.isfinite(value):
        return "–"
    return f"{value:.{max(0, digits - 1 - int(np.floor(np.log10(abs(value) or 1))))}f}"


def places(width: float) -> int:
    """Decimal places that show two digits of an interval's width."""
    return int(np.clip(1 - np.floor(np.log10(width)), 0, 6)) if np.isfinite(width) and width > 0 else 3


def difference_text(difference: Difference, metric: AnyMetric) -> str:
    """The difference with its interval, in percent or in the metric's own units."""
    return f"{percent(difference.estimate)} {interval(difference)}" if metric.relative else signed(difference)


def signed(difference: Difference) -> str:
    """A difference of scores with its interval: +0.013 [+0.002, +0.024]."""
    digits = places(difference.high - difference.low)
    texts = [f"{value:+.{digits}f}" for value in (difference.estimate, difference.low, difference.high)]
    return "{} [{}, {}]".format(*texts).replace("-", "−")


def interval(difference: Difference) -> str:
    """The 95 % interval in percent: [−2.6, −1.0]."""
    low, high = (percent(bound).removesuffix(" %") for bound in (difference.low, difference.high))
    return f"[{low}, {high}]"
