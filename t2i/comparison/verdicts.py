"""Which variant is better, by how much, and whether the difference is more than noise.

Runs are paired: each with the baseline's run of the same seed, on the same images, noise levels and noise.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from t2i.comparison import folds
from t2i.comparison.factors import Factors
from t2i.comparison.image_scores import score_metrics
from t2i.comparison.power import Pilot, pilot_of
from t2i.comparison.results import Result
from t2i.comparison.same_battery import share
from t2i.comparison.score_significance import score_difference, score_table
from t2i.comparison.significance import (
    LEVEL,
    Difference,
    Sides,
    difference,
    gap_difference,
    holm,
    pseudo_by_level,
    table_of,
)
from t2i.evaluation.metrics import Metric, all_metrics, bin_metrics, gap_metrics
from t2i.evaluation.score_metric import ScoreMetric
from t2i.runs.records import ERRORS

AnyMetric = Metric | ScoreMetric


@dataclass(frozen=True, eq=False)
class Variant:
    """Runs with the same values of the factors, which are compared under one label."""

    label: str
    runs: dict[tuple, Result]  # by the key that pairs them with the baseline's runs: (seed, ...)

    def values(self, of: Callable[[Result], float]) -> np.ndarray:
        """One number for each run."""
        return np.array([of(run) for run in self.runs.values()])

    def mean(self, metric: AnyMetric) -> float:
        """The metric's mean over the runs; of folds, over seeds."""
        return float(self.estimates(metric).mean())

    def estimates(self, metric: AnyMetric) -> np.ndarray:
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
    sign: int = 1  # -1 where a higher value is better

    @property
    def outcome(self) -> str:
        """better, worse or same, which means that no difference was proven."""
        return _outcome(self.sign * self.total.estimate, self.p)

    @property
    def bin_outcomes(self) -> list[str]:
        return [_outcome(snr_bin.estimate, p) for snr_bin, p in zip(self.bins, self.bins_p, strict=True)]

    @property
    def lost_by_correction(self) -> bool:
        """Whether the difference would count if this were the only comparison."""
        return self.outcome == "same" and self.total.p < LEVEL


def _outcome(change: float, p: float) -> str:
    if not p < LEVEL:
        return "same"
    return "better" if change < 0 else "worse"


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
    differences: dict[tuple[Variant, AnyMetric], Difference] = field(default_factory=dict)  # those computed so far
    whole: "Comparison | None" = None  # of an excerpt: the comparison with all variants, which it is a part of

    @property
    def runs(self) -> list[Result]:
        """The runs that are compared."""
        return [run for variant in self.variants for run in variant.runs.values()]

    @property
    def num_timesteps(self) -> int:
        return self.runs[0].errors[self.runs[0].battery].shape[1]

    @property
    def metrics(self) -> list[AnyMetric]:
        """The metrics that can be compared: those that every run has, on the same images; then those of its images."""
        return [*self.errors, *self.scores]

    @cached_property
    def scores(self) -> list[ScoreMetric]:
        """The metrics of the images that the models draw."""
        return self.whole.scores if self.whole else score_metrics(self.runs)

    @cached_property
    def errors(self) -> list[Metric]:
        """The metrics of the denoising error."""
        if self.whole:
            return self.whole.errors
        prefixes = [f"{battery}{weights}" for battery in ERRORS for weights in ("", "ema/")]
        shared = [prefix for prefix in prefixes if share(self.runs, prefix)]
        metrics = [metric for prefix in shared for metric in all_metrics(prefix, self.num_timesteps)] + gap_metrics()
        return [metric for metric in metrics if metric.measured_in(shared)]

    @property
    def headline(self) -> Metric:
        """The metric that the runs are judged by."""
        return self.errors[0]

    def pairs(self, variant: Variant) -> list[tuple]:
        """The keys under which both the variant and the baseline have a run; of folds, those of seeds that have all."""
        return folds.complete(variant.runs, [pair for pair in variant.runs if pair in self.baseline.runs])

    def difference(self, variant: Variant, metric: AnyMetric) -> Difference:
        """The difference between a variant that has pairs and the baseline."""
        if (variant, metric) not in self.differences:
            self.differences[variant, metric] = (
                self._of_scores(variant, metric)
                if isinstance(metric, ScoreMetric)
                else self._of_errors(variant, metric)
            )
        return self.differences[variant, metric]

    def pilot(self, variant: Variant, metric: AnyMetric) -> Pilot | None:
        """What the difference between a variant that has pairs and the baseline says of the variances.

        None of a gap, which is measured on two samples of images.
        """
        if isinstance(metric, ScoreMetric):
            return pilot_of(score_table(*self._scores(variant, metric)))
        if metric.against is not None:
            return None
        errors, baseline, of = self._sides(variant, metric, metric.prefix)
        by_level = metric.mean == "geometric" and of is None
        table = table_of(errors, baseline, metric.mean, of)
        return pilot_of(table, pseudo_by_level(errors, baseline) if by_level else None)

    def num_images(self, variant: Variant, metric: Metric) -> int:
        """The number of images on which a variant that has pairs and the baseline were measured."""
        return self._sides(variant, metric, metric.prefix)[0].shape[1]

    def _of_scores(self, variant: Variant, metric: ScoreMetric) -> Difference:
        return score_difference(*self._scores(variant, metric))

    def _scores(self, variant: Variant, metric: ScoreMetric) -> list[np.ndarray]:
        """The scores of the variant's runs and of the baseline's."""
        return [
            np.stack([side.runs[pair].scores[metric.battery, metric.name].values for pair in self.pairs(variant)])
            for side in (variant, self.baseline)
        ]

    def _of_errors(self, variant: Variant, metric: Metric) -> Difference:
        sides = self._sides(variant, metric, metric.prefix)
        if metric.against is None:
            return difference(*sides[:2], metric.mean, sides[2])
        return gap_difference(sides, self._sides(variant, metric, metric.against), metric.mean)

    def _sides(self, variant: Variant, metric: Metric, prefix: str) -> Sides:
        """The errors that the metric averages of the variant's runs and the baseline's, and the images' folds."""
        pairs = self.pairs(variant)
        (errors, of), (baseline, _) = (folds.stacked(side.runs, pairs, prefix) for side in (variant, self.baseline))
        return metric.part(errors), metric.part(baseline), of

    def bins(self, metric: AnyMetric) -> list[Metric]:
        """The same metric in each SNR bin; none of the metrics of images."""
        if isinstance(metric, ScoreMetric):
            return []
        return [replace(snr_bin, against=metric.against) for snr_bin in bin_metrics(metric.prefix, self.num_timesteps)]

    def verdicts(self, metric: AnyMetric) -> list[Verdict]:
        """The verdict on every variant that has pairs with the baseline, best first."""
        if self.whole is not None:
            return [verdict for verdict in self.whole.verdicts(metric) if verdict.variant in self.variants]
        if metric not in self._verdicts:
            self._verdicts[metric] = self._judge(metric)
        return self._verdicts[metric]

    def num_tests(self, metric: AnyMetric) -> int:
        """The number of variants that are tested, which p is corrected for."""
        return len((self.whole or self).verdicts(metric))

    @cached_property
    def _verdicts(self) -> dict[AnyMetric, list[Verdict]]:
        return {}

    def _judge(self, metric: AnyMetric) -> list[Verdict]:
        tested = [variant for variant in self.variants if variant is not self.baseline and self.pairs(variant)]
        bins = self.bins(metric)
        totals = [self.difference(variant, metric) for variant in tested]
        per_bin = [[self.difference(variant, snr_bin) for snr_bin in bins] for variant in tested]
        p = holm([total.p for total in totals]).tolist()
        bins_p = holm([snr_bin.p for row in per_bin for snr_bin in row]).reshape(len(tested), len(bins)).tolist()
        verdicts = [
            Verdict(
                variant=variant,
                total=totals[i],
                p=p[i],
                bins=per_bin[i],
                bins_p=bins_p[i],
                seeds=len({seed for seed, *_ in self.pairs(variant)}),
                sign=metric.sign,
            )
            for i, variant in enumerate(tested)
        ]
        return sorted(verdicts, key=lambda verdict: metric.sign * verdict.total.estimate)
