"""Which setting is better, by how much, and is it more than noise.

Runs are paired: each with the baseline's run of the same seed, on the same images, timesteps and noise.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from t2i.comparison.factors import Keys
from t2i.comparison.results import Result
from t2i.comparison.significance import Difference, difference, holm
from t2i.evaluation.metrics import Metric, all_metrics, bin_metrics

LEVEL = 0.05  # of the adjusted p below which a difference is called one


@dataclass(frozen=True, eq=False)
class Setting:
    """The runs that are compared under one label."""

    label: str
    runs: dict[tuple, Result]  # under what they are paired by: the seed first

    def values(self, of: Callable[[Result], float]) -> np.ndarray:
        """One number for each run."""
        return np.array([of(run) for run in self.runs.values()])


@dataclass(frozen=True)
class Verdict:
    """A setting against the baseline."""

    setting: Setting
    total: Difference
    p: float  # adjusted for the number of settings (Holm 1979)
    bins: list[Difference]  # one for each SNR bin, noisiest first
    bins_p: list[float]  # adjusted for the number of settings and bins
    seeds: int

    @property
    def outcome(self) -> str:
        return _outcome(self.total, self.p)

    @property
    def words(self) -> str:
        if self.outcome != "same":
            return self.outcome
        return "not proven" if self.total.p < LEVEL else "within noise"  # alone it would be called a difference

    @property
    def bin_outcomes(self) -> list[str]:
        return list(map(_outcome, self.bins, self.bins_p))


def _outcome(difference: Difference, p: float) -> str:
    """better, worse, or same: no difference larger than the noise."""
    if not p < LEVEL:
        return "same"
    return "better" if difference.estimate < 0 else "worse"


@dataclass(frozen=True)
class Comparison:
    """Settings in the order of their values, the baseline among them."""

    results: list[Result]  # all that were found, each with the step at which it speaks
    keys: Keys
    settings: list[Setting]
    baseline: Setting
    left_out: dict[Result, str]  # run -> why it is not compared
    notes: list[str]  # how the runs were pooled and paired
    warnings: list[str]  # what may make the comparison unfair, and what was left out of it
    differences: dict[tuple[Setting, Metric], Difference] = field(default_factory=dict)  # those computed so far

    @property
    def runs(self) -> list[Result]:
        """Those that are compared."""
        return [run for setting in self.settings for run in setting.runs.values()]

    @property
    def num_timesteps(self) -> int:
        return self.runs[0].errors[""].shape[1]

    @property
    def metrics(self) -> list[Metric]:
        """What can be compared: of averaged weights only if every run has them."""
        kinds = [weights for weights in ("", "ema/") if all(weights in run.errors for run in self.runs)]
        return [metric for weights in kinds for metric in all_metrics(weights, self.num_timesteps)]

    def pairs(self, setting: Setting) -> list[tuple]:
        """What runs of the setting and of the baseline have in common."""
        return [pair for pair in setting.runs if pair in self.baseline.runs]

    def difference(self, setting: Setting, metric: Metric) -> Difference:
        """Of a setting that has pairs."""
        if (setting, metric) not in self.differences:
            errors, baseline = (
                np.stack([metric.part(each.runs[pair].errors[metric.weights]) for pair in self.pairs(setting)])
                for each in (setting, self.baseline)
            )
            self.differences[setting, metric] = difference(errors, baseline, metric.mean)
        return self.differences[setting, metric]

    def verdicts(self, metric: Metric) -> list[Verdict]:
        """Of every setting that has pairs with the baseline, best first."""
        tested = [each for each in self.settings if each is not self.baseline and self.pairs(each)]
        bins = bin_metrics(metric.weights, self.num_timesteps)
        totals = [self.difference(setting, metric) for setting in tested]
        per_bin = [[self.difference(setting, each) for each in bins] for setting in tested]
        p = holm([total.p for total in totals]).tolist()
        bins_p = holm([each.p for row in per_bin for each in row]).reshape(-1, len(bins)).tolist()
        seeds = [len({pair[0] for pair in self.pairs(setting)}) for setting in tested]
        verdicts = map(Verdict, tested, totals, p, per_bin, bins_p, seeds)
        return sorted(verdicts, key=lambda verdict: verdict.total.estimate)

    def sentences(self, metric: Metric) -> list[tuple[str, str]]:
        """What a person needs to know: outcome and text of every verdict, then of what the intervals speak."""
        verdicts = self.verdicts(metric)
        found, most_seeds = [], max((verdict.seeds for verdict in verdicts), default=0)
        for verdict in verdicts:
            sentence = _sentence(verdict, self.baseline.label, len(verdicts))
            seeds = " with one seed" if verdict.seeds < most_seeds and verdict.seeds == 1 else ""
            bins = _bins_clause(verdict) if metric.snr_bin is None else ""
            found.append((verdict.outcome, f"{sentence}{seeds}{bins}."))
        return [*found, ("scope", _scope(verdicts))] if found else []


def _sentence(verdict: Verdict, baseline: str, num_tests: int) -> str:
    total, label = verdict.total, verdict.setting.label
    if verdict.outcome == "same":
        noise = f"that stands among {num_tests} comparisons" if total.p < LEVEL else "larger than the noise"
        return f"{label}: no difference {noise}, {percent(total.estimate)} {interval(total)}"
    least, most = sorted((abs(total.low), abs(total.high)))
    by = f"{100 * abs(total.estimate):.1f} % [{100 * least:.1f}, {100 * most:.1f}]"
    return f"{label} is {verdict.outcome} than {baseline} by {by}"


def _bins_clause(verdict: Verdict) -> str:
    """Where it is better and where worse, if that is not the same everywhere."""
    parts = [
        f"{outcome} in {_ranges([i for i, found in enumerate(verdict.bin_outcomes) if found == outcome])}"
        for outcome in ("better", "worse")
        if outcome in verdict.bin_outcomes and set(verdict.bin_outcomes) != {verdict.outcome}
    ]
    return f"; {' and '.join(parts)}" if parts else ""


def _scope(verdicts: list[Verdict]) -> str:
    single = [verdict.setting.label for verdict in verdicts if verdict.seeds == 1]
    if len(single) == len(verdicts):
        return (
            "One seed: the intervals speak of these trained models only, as other held-out images would judge them; "
            "another seed could turn a result round. Add seed=0,1,2 to the sweep to compare the settings."
        )
    seeds = sorted({verdict.seeds for verdict in verdicts} - {1})
    scope = f"{' or '.join(map(str, seeds))} seeds: the intervals speak of the settings, over seeds and images"
    if single:
        scope += f"; but for {', '.join(single)}, with one seed, of the trained models only"
    return f"{scope}. A third seed would make them far narrower." if 2 in seeds else f"{scope}."


def _ranges(places: list[int]) -> str:
    """SNR bins 0-2, 5: runs of neighbours are joined."""
    starts = [place for place in places if place - 1 not in places]
    ends = [place for place in places if place + 1 not in places]
    parts = [str(a) if a == b else f"{a}–{b}" for a, b in zip(starts, ends, strict=True)]
    return f"SNR bin{'s' if len(places) > 1 else ''} {', '.join(parts)}"


def percent(share: float) -> str:
    """With a sign, and the minus of print."""
    return f"{100 * share:+.1f} %".replace("-", "−")


def number(value: float, digits: int = 4) -> str:
    """So many significant digits; – where it is not a number."""
    if not np.isfinite(value):
        return "–"
    return f"{value:.{max(0, digits - 1 - int(np.floor(np.log10(abs(value) or 1))))}f}"


def interval(difference: Difference) -> str:
    """[−2.6, −1.0], in percent."""
    low, high = (percent(each).removesuffix(" %") for each in (difference.low, difference.high))
    return f"[{low}, {high}]"
