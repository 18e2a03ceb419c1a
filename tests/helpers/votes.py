"""Simulated votes: what a judge sees in a pair is the difference of two models' utilities, and noise."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.special import ndtr

from t2i.comparison.ballots import Ballots
from t2i.judging.contestants import Contest
from t2i.judging.session import Session
from t2i.runs.judgements import Judgements

TIE = 0.3  # a smaller difference is no difference to a judge


def simulate(
    rng: np.random.Generator,
    utilities: np.ndarray,
    judges: int = 3,
    prompts: int = 20,
    seeds: int = 1,
    votes: int = 20,
    spread: float = 0.5,
    shared: bool = True,
) -> Ballots:
    """Votes on all pairs of variants in turn, `votes` of each judge, as t2i judge chooses them.

    spread: of the judges, in units of a single vote's noise. Prompts spread by 0.5, training seeds and single images
    by 0.3. shared: whether all judges see the same pairs; else one goes on where the other stopped.
    """
    variants = len(utilities)
    pairs = np.array([(a, b) for a in range(variants) for b in range(a + 1, variants)])
    order = np.stack([rng.permutation(prompts) for _ in pairs])
    number = np.arange(votes) + (0 if shared else votes) * np.arange(judges)[:, None]
    number, judge = number.ravel(), np.repeat(np.arange(judges), votes)
    pair, turn = number % len(pairs), number // len(pairs)
    prompt = order[pair, turn % prompts]
    seed = (turn + turn // prompts) % seeds
    scales = {"judge": spread * (judges > 1), "seed": 0.3 * (seeds > 1)}
    seen = (
        utilities
        + 0.5 * rng.standard_normal((prompts, variants))[prompt]
        + scales["judge"] * rng.standard_normal((judges, variants))[judge]
        + scales["seed"] * rng.standard_normal((seeds, variants))[seed]
        + 0.3 * rng.standard_normal((prompts, seeds, variants))[prompt, seed]
    )
    first, second = pairs[pair].T
    row = np.arange(len(pair))
    difference = seen[row, first] - seen[row, second] + rng.standard_normal(len(pair))
    won = np.where(difference > TIE, 1.0, np.where(difference < -TIE, 0.0, 0.5))
    return Ballots(first, second, won, judge, seed, prompt)


def true_rate(utilities: np.ndarray, judges: int = 3, seeds: int = 1, spread: float = 0.5) -> float:
    """The first variant's win rate over the second, over all judges, prompts and training seeds."""
    components = [0.5, 0.3, spread * (judges > 1), 0.3 * (seeds > 1)]
    scale = np.sqrt(1 + 2 * np.square(components).sum())
    difference = utilities[0] - utilities[1]
    return float(ndtr((difference + TIE) / scale) + ndtr((difference - TIE) / scale)) / 2


def cast_votes(contest: Contest, folder: Path, utilities: dict[str, float], judges: Sequence[str], count: int) -> None:
    """Let judges that agree but for their noise vote on the pairs of a contest, as the page does."""
    session, rng = Session(contest, Judgements(folder.resolve()), 0, count), np.random.default_rng(0)
    utility = {model: utilities[label] for label, models in contest.variants.items() for model in models.values()}
    for judge in judges:
        for pair in session._schedule(judge):
            difference = utility[pair.left] - utility[pair.right] + rng.standard_normal()
            choice = "equal" if abs(difference) < TIE else "left" if difference > 0 else "right"
            session.vote(judge, pair.id, choice)
