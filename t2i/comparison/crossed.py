"""The variance of a mean of votes that judges, training seeds and prompts share: crossed random effects, any design.

A vote is judged by somebody, on the images of a prompt, from models of a training seed. Votes that share one of these
are correlated, so the variance of their mean is not s²/N, and another judge or prompt could say something else (Clark
1973, "The language-as-fixed-effect fallacy"). Readers and cases in medical imaging are the same problem, and like
there, not everybody sees everything. Gallas et al. (2009, "A framework for random-effects ROC analysis") estimate the
variance for any such design:

    Var(Σu) = Σ over pairs of votes (a, b) that share something of Cov(u_a, u_b)

Each covariance is estimated by the products u_a·u_b. Those of pairs that share nothing are 0 but for the mean that was
subtracted from u; their sum says how much that takes away from the others. Where every judge votes on every prompt, the
result is that of the analysis of variance, as in `significance.py`. It has three terms:

    term 1: pairs with the same judge                                       J − 1 degrees of freedom
    term 2: other judges, the same training seed                            S − 1
    term 3: other judges and seeds, the same prompt                         P − 1

Negative terms count as 0. p is the mean of the p-values with the degrees of freedom of each term, weighted by the
terms' fractions of the variance (Cochran & Cox 1950); two judges or seeds say little about their fraction, and its
square root replaces it. J is (Σn)²/Σn² for judges with n votes each (Kish 1965). The variance is at least that of
independent votes; what this adds has many degrees of freedom, unless there are two judges and two seeds only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtr

from t2i.comparison.significance import LEVEL


@dataclass(frozen=True)
class Spread:
    """The variance of an estimate, and how well it is known."""

    variance: float
    fractions: np.ndarray  # of the terms
    dofs: np.ndarray

    def p(self, t: float) -> float:
        """The two-sided p-value of an estimate `t` standard errors from the hypothesis."""
        return float(2 * self.fractions @ stdtr(self.dofs, -abs(t)))

    @property
    def critical(self) -> float:
        """The number of standard errors at which p is 0.05."""
        (root,) = np.atleast_1d(brentq(lambda t: self.p(t) - LEVEL, 0, 13))  # 12.7 at one degree of freedom
        return float(root)


def spread(influence: np.ndarray, weight: np.ndarray, factors: Sequence[np.ndarray], floor: float = 0.0) -> Spread:
    """The spread of an estimate whose error is the sum of the `influence` of its votes, [N].

    weight: how much the estimate moves with each vote, [N]: 1/N for a mean.
    factors: the level of each vote, from 0, of judges, training seeds and prompts, in this order; those that have a
    single level say nothing about others, and are left out.
    floor: the least variance.
    Infinite where nothing tells how far votes spread: there is one vote, or no factor has two levels.
    """
    factors = [np.unique(factor, return_inverse=True)[1] for factor in factors if len(np.unique(factor)) > 1]
    if len(weight) < 2 or not factors:
        return Spread(np.inf, np.ones(1), np.ones(1))
    weight = np.abs(weight) / np.abs(weight).sum()
    uncorrelated = float(np.square(influence).sum()) * len(weight) / (len(weight) - 1)
    terms = np.maximum(_terms(influence, weight, factors), 0)
    variance = max(float(terms.sum()), uncorrelated, floor)  # what votes share makes them more alike, if anything
    dofs = np.array([max(1 / np.square(np.bincount(factor, weight)).sum() - 1, 1) for factor in factors])
    known = 0 < variance < np.inf
    if known and (dofs[:-1] < 1.5).sum() > 1:  # two of both
        terms[0] += variance - terms.sum()
    return Spread(variance, _fractions(terms / variance if known else np.zeros(len(terms)), dofs), dofs)


def _fractions(terms: np.ndarray, dofs: np.ndarray) -> np.ndarray:
    """The terms' fractions of the variance; the last one, whose levels are many, has what is left."""
    few = terms[:-1] ** np.minimum(1, dofs[:-1] / 2)
    few = few / max(few.sum(), 1)
    return np.append(few, 1 - few.sum())


def _terms(influence: np.ndarray, weight: np.ndarray, factors: Sequence[np.ndarray]) -> np.ndarray:
    """The terms of the variance, one for each factor: pairs that share it and none of the factors before."""
    subsets = [subset for size in range(len(factors) + 1) for subset in combinations(range(len(factors)), size)]
    products = _exactly_shared(influence, factors, subsets)
    shares = _exactly_shared(weight, factors, subsets)
    if shares[()] < 0.02:  # nearly all pairs share something: there is nothing to compare with
        return np.full(len(factors), np.inf)
    variance = -products[()] / shares[()]
    sums = {subset: products[subset] + shares[subset] * variance for subset in subsets if subset}
    return np.array([sum(sums[key] for key in sums if key[0] == i) for i in range(len(factors))])


def _exactly_shared(
    values: np.ndarray, factors: Sequence[np.ndarray], subsets: Sequence[tuple[int, ...]]
) -> dict[tuple[int, ...], float]:
    """Σ v_a·v_b over the pairs of votes that share just these factors."""
    at_least = {subset: float(np.square(_group_sums(values, [factors[i] for i in subset])).sum()) for subset in subsets}
    return {
        subset: sum((-1) ** (len(more) - len(subset)) * at_least[more] for more in subsets if {*subset} <= {*more})
        for subset in subsets
    }


def _group_sums(values: np.ndarray, factors: Sequence[np.ndarray]) -> np.ndarray:
    group = np.zeros(len(values), dtype=int)
    for factor in factors:
        group = group * (factor.max() + 1) + factor
    return np.bincount(group, values)
