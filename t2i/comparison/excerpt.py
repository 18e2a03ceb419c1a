"""What figures, sentences and galleries show of a comparison with more variants and runs than anybody can look at.

The verdicts are those of the whole comparison: a variant is corrected for all that were tested, shown or not.
"""

from collections.abc import Sequence
from dataclasses import replace

from t2i.comparison.results import Result
from t2i.comparison.verdicts import AnyMetric, Comparison

MOST_VARIANTS, MOST_RUNS = 40, 200  # beyond either, only a part is shown
SHOWN = 25  # variants, the baseline among them
MOST_WARNINGS = 20
SHOWN_LEFT_OUT = 20  # curves of runs that are not compared


def is_large(comparison: Comparison) -> bool:
    return len(comparison.variants) > MOST_VARIANTS or len(comparison.results) > MOST_RUNS


def excerpt(comparison: Comparison, metric: AnyMetric) -> Comparison:
    """The best variants by a metric, and the baseline; the comparison itself if it is small."""
    if not is_large(comparison):
        return comparison
    ranked = sorted(comparison.variants, key=lambda variant: metric.sign * variant.mean(metric))
    best = ranked if len(ranked) <= MOST_VARIANTS else ranked[: SHOWN - 1]
    variants = [variant for variant in comparison.variants if variant in best or variant is comparison.baseline]
    left_out = dict(list(comparison.left_out.items())[:SHOWN_LEFT_OUT])
    runs = {run for variant in variants for run in variant.runs.values()} | left_out.keys()
    results = [run for run in comparison.results if run in runs]
    return replace(comparison, results=results, variants=variants, left_out=left_out, whole=comparison)


def shown_metrics(comparison: Comparison, chosen: AnyMetric) -> list[AnyMetric]:
    """The metrics with a section of their own on the page: of a large comparison, none of single SNR bins."""
    if not is_large(comparison):
        return comparison.metrics
    return [metric for metric in comparison.metrics if metric == chosen or metric.snr_bin is None]


def sampled_runs(comparison: Comparison) -> Sequence[Result]:
    """The runs whose samples are shown: of an excerpt the first of each variant."""
    if comparison.whole is None:
        others = sorted(comparison.left_out, key=lambda run: comparison.factors.sort_key(run) if run.config else ())
        return [*comparison.runs, *others]
    return [next(iter(variant.runs.values())) for variant in comparison.variants]


def note(shown: Comparison, metric: AnyMetric) -> str:
    """What is shown of how much; "" if it is all."""
    if shown.whole is None:
        return ""
    variants, runs = len(shown.whole.variants), len(shown.whole.results)
    part = f"the {len(shown.variants)} variants" if len(shown.variants) < variants else f"all {variants} variants"
    if len(shown.variants) < variants:
        part += f" of {variants:,} that are best by {metric.name}, the baseline among them"
    return (
        f"Figures and sentences show {part}, samples one run of each; every verdict is corrected for all variants. "
        f"The tables of all {variants:,} variants and {runs:,} runs are at the end, and in results.csv."
    )


def shown_warnings(comparison: Comparison) -> list[str]:
    """The warnings, and how many more there are than can be read."""
    more = len(comparison.warnings) - MOST_WARNINGS
    return [
        *comparison.warnings[:MOST_WARNINGS],
        *([f"There are {more:,} more warnings like these."] if more > 0 else []),
    ]


def several(names: Sequence[str], most: int = 8) -> str:
    """A list for a sentence: all names, or the first and how many more there are."""
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:most])} and {len(names) - most:,} more"
