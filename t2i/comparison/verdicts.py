"""Which variant is better, by how much, and whether the difference is more than noise.

Runs are paired: each with the baseline's run of the same seed, on the same images, noise levels and noise.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from t2i.comparison import folds
from t2i.comparison.factors import Factors
from t2i.comparison.results import Result
from t2i.comparison.significance import LEVEL, Difference, difference, holm
from t2i.evaluation.metrics import Metric, all_metrics, bin_metrics, gap_metrics
from t2i.runs.records import ERRORS


@dataclass(frozen=True, eq=False)
class Variant:
    """Runs with the same values of the factors, which are compared under one label."""

    label: str
    runs: dict[tuple, Result]  # by the key that pairs them with the baseline's runs: (seed, ...)

    def values(self, of: Callable[[Result], float]) -> np.ndarray:
        """One number for each run."""
        return np.array([of(run) for run in self.runs.values()])

    def mean(self, metric: Metric) -> float:
        """The metric's mean over the runs; of folds, over seeds."""
        return float(self.estimates(metric).mean())

    def estimates(self, metric: Metric) -> np.ndarray:
        """The metric of each run; of runs with folds, that of each seed over the images of all folds."""
        return folds.values(self.runs, metric)


@dataclass(frozen=True)
class Verdict:
    """The test of a variant against the baseline."""

    variant: Variant
    total: Difference  # in the metric itself
    p: float  # adjusted for the number of variants (Holm 1979)
    bins: list[Difference]  # in each SNR bin, noisiest first
    bins_p: list[float]  # adjusted for the number of variants and bins
    seeds: int

    @property
    def outcome(self) -> str:
        """better, worse or same, which means that no difference was proven."""
        return _outcome(self.total, self.p)

    @property
    def bin_outcomes(self) -> list[str]:
        return list(map(_outcome, self.bins, self.bins_p))

    @property
    def lost_by_correction(self) -> bool:
        """Whether the difference would count if this were the only comparison."""
        return self.outcome == "same" and self.total.p < LEVEL


def _outcome(difference: Difference, p: float) -> str:
    if not p < LEVEL:
        return "same"
    return "better" if difference.estimate < 0 else "worse"


@dataclass(frozen=True)
class Comparison:
    """The variants in the order of their factors' values, the baseline among them."""

    results: list[Result]  # all runs in the folders, each at the step at which it is compared
    factors: Factors
    variants: list[Variant]
    baseline: Variant
    left_out: dict[Result, str]  # run -> why it is not compared
    notes: list[str]  # how the runs were pooled and paired
    warnings: list[str]  # what may make the comparison unfair, and what it leaves out
    differences: dict[tuple[Variant, Metric], Difference] = field(default_factory=dict)  # those computed so far

    @property
    def runs(self) -> list[Result]:
        """The runs that are compared."""
        return [run for variant in self.variants for run in variant.runs.values()]

    @property
    def num_timesteps(self) -> int:
        return self.runs[0].errors[self.runs[0].battery].shape[1]

    @property
    def metrics(self) -> list[Metric]:
        """The metrics that can be compared: those that every run has, such as those of averaged weights."""
        prefixes = [f"{battery}{weights}" for battery in ERRORS for weights in ("", "ema/")]
        metrics = [metric for prefix in prefixes for metric in all_metrics(prefix, self.num_timesteps)] + gap_metrics()
        return [metric for metric in metrics if all(metric.measured_in(run.errors) for run in self.runs)]

    @property
    def headline(self) -> Metric:
        """The metric that the runs are judged by."""
        return self.metrics[0]

    def pairs(self, variant: Variant) -> list[tuple]:
        """The keys under which both the variant and the baseline have a run; of folds, those of seeds that have all."""
        return folds.complete(variant.runs, [pair for pair in variant.runs if pair in self.baseline.runs])

    def difference(self, variant: Variant, metric: Metric) -> Difference:
        """The difference between a variant that has pairs and the baseline."""
        if (variant, metric) not in self.differences:
            pairs = self.pairs(variant)
            (errors, in_folds), (baseline, _) = (
                folds.stacked(side.runs, pairs, metric.prefix) for side in (variant, self.baseline)
            )
            self.differences[variant, metric] = difference(
                metric.part(errors), metric.part(baseline), metric.mean, in_folds
            )
        return self.differences[variant, metric]

    def verdicts(self, metric: Metric) -> list[Verdict]:
        """The verdict on every variant that has pairs with the baseline, best first."""
        tested = [variant for variant in self.variants if variant is not self.baseline and self.pairs(variant)]
        bins = bin_metrics(metric.prefix, self.num_timesteps)
        totals = [self.difference(variant, metric) for variant in tested]
        per_bin = [[self.difference(variant, snr_bin) for snr_bin in bins] for variant in tested]
        p = holm([total.p for total in totals]).tolist()
        bins_p = holm([snr_bin.p for row in per_bin for snr_bin in row]).reshape(-1, len(bins)).tolist()
        verdicts = [
            Verdict(
                variant=variant,
                total=totals[i],
                p=p[i],
                bins=per_bin[i],
                bins_p=bins_p[i],
                seeds=len({seed for seed, *_ in self.pairs(variant)}),
            )
            for i, variant in enumerate(tested)
        ]
        return sorted(verdicts, key=lambda verdict: verdict.total.estimate)
