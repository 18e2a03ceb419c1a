"""Races replayed: how often they find the best setting, and at which part of a full grid's cost.

    python benchmarks/race.py                      # the table in docs/racing.md
    python benchmarks/race.py --record multirun/G  # keep the errors of a complete grid in race_grid.npz

A replayed race takes its decisions as `hydra/launcher=racing` does, and reads the errors of runs from a table instead
of training them. The recorded grid is 4 snr_gamma × 3 learning rates × 5 seeds, the tiny model from fresh weights:

    t2i train -m sweep=race_grid dataset=openmoji model.pretrained=false seed=0,1,2,3,4 loss.snr_gamma=0.2,1,5,20 \\
        optimizer.lr=3e-4,1e-3,3e-3 steps=256 batch_size=8 micro_batch_size=8 validate_every=16 validation.items=24 \\
        validation.timesteps=8 sample_every=0

Seeds are drawn anew for every race: the logarithm of an error is its mean over the recorded seeds plus a random mixture
of their deviations from it, the same for all settings and steps, so the covariance stays what it was. The simulated
grids have 9 settings whose true losses are known.
"""

import argparse
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from t2i.comparison.race_rules import Measurement
from t2i.comparison.results import read_results
from t2i.runs.errors_file import read_errors
from t2i.sweeps.race import Member, Race, Rules

GRID = Path(__file__).parent / "race_grid.npz"
TOLERANCE = 0.005


@dataclass(frozen=True)
class Grid:
    """Errors of settings × seeds at some steps, on N images and K noise levels: [M, S, T, N, K]."""

    settings: list[str]
    steps: list[int]
    log_errors: np.ndarray

    @classmethod
    def recorded(cls, gammas: Sequence[str]) -> "Grid":
        """The part of the recorded grid with these values of snr_gamma."""
        with np.load(GRID) as file:
            settings, steps, log_errors = file["settings"].tolist(), file["steps"].tolist(), file["log_errors"]
        kept = [i for i, setting in enumerate(settings) if setting.partition(" ")[0] in gammas]
        return cls([settings[i] for i in kept], steps, log_errors[kept].astype(np.float64))

    def drawn_anew(self, rng: np.random.Generator) -> "Grid":
        """The same settings with new seeds."""
        mean = self.log_errors.mean(1, keepdims=True)
        num_seeds = self.log_errors.shape[1]
        mixture = rng.normal(size=(num_seeds, num_seeds)) / np.sqrt(num_seeds - 1)
        return Grid(self.settings, self.steps, mean + np.einsum("zs,mstnk->mztnk", mixture, self.log_errors - mean))

    def loss(self) -> np.ndarray:
        """The true log headline of each setting at the end: over all seeds."""
        return np.log(np.exp(self.log_errors[:, :, -1]).mean(2)).mean((1, 2))


@dataclass(frozen=True)
class Replay:
    """How a race ended."""

    share: float  # of the full grid's steps
    excess: float | None  # relative loss of the winner over the best; None if there is no winner

    @property
    def right(self) -> bool:
        return self.excess is not None and self.excess <= TOLERANCE

    @property
    def wrong(self) -> bool:
        return self.excess is not None and self.excess > TOLERANCE


def replay(
    grid: Grid, truth: np.ndarray, rounds: Sequence[float] = (0.25, 0.375, 0.5, 0.75), first_seeds: int = 2
) -> Replay:
    """Race on the grid. truth: the true log loss of each setting."""
    end, num_seeds = grid.steps[-1], grid.log_errors.shape[1]
    rules = Rules(
        rounds=[round(part * end) for part in (*rounds, 1)],
        seeds=range(num_seeds),
        first_seeds=first_seeds,
        risk=0.05,
        tolerance=TOLERANCE,
    )
    race = Race(grid.settings, rules)

    def measure(member: Member, step: int) -> Measurement:
        runs = grid.log_errors[grid.settings.index(member.setting), member.seed]
        now, before = (np.exp(runs[grid.steps.index(at)]) for at in (step, step // 2))
        return Measurement.of(now, before)

    for _ in race.rounds(measure):
        pass
    excess = None
    if race.winner is not None:
        excess = float(np.expm1(truth[grid.settings.index(race.winner)] - truth.min()))
    return Replay(race.spent / race.full_grid, excess)


def record(sweep: Path) -> None:
    """Write the errors of a complete grid's averaged weights to race_grid.npz."""
    errors: dict[tuple[str, int], dict[int, np.ndarray]] = {}
    for run in read_results([sweep]):
        setting = f"snr_gamma={run.config['loss.snr_gamma']:g} lr={run.config['optimizer.lr']:g}"
        files = {step: file for step, file in run.validations.items() if step}
        errors[setting, run.config["seed"]] = {step: read_errors(file)["ema/"] for step, file in files.items()}
    settings, seeds = (list(dict.fromkeys(keys)) for keys in zip(*sorted(errors), strict=True))
    steps = sorted(set.intersection(*(set(by_step) for by_step in errors.values())))
    table = np.array([[[errors[setting, seed][step] for step in steps] for seed in seeds] for setting in settings])
    np.savez_compressed(GRID, settings=settings, steps=steps, log_errors=np.log(table).astype(np.float32))


STEPS = [32, 48, 64, 96, 128, 192, 256]
TIMES = np.log2(np.array(STEPS) / STEPS[0]) / 3  # 0 to 1
STEADY = np.full(9, 0.0075)  # about the noise of the recorded grid
UNSTEADY = 0.0075 * np.array([1, 1, 1, 1, 2, 2, 3, 3, 5])


def simulated(rng: np.random.Generator, true_loss: np.ndarray, seed_noise: np.ndarray) -> Grid:
    """A grid of 5 seeds with these log losses at STEPS, [M, T].

    seed_noise: standard deviation of a run's log loss in each setting, [M]; half of its variance is a random walk.
    """
    num_settings, num_times = true_loss.shape
    new = np.sqrt(np.diff(TIMES, prepend=-1 / 3) * 0.5 * 3 / 4)
    runs = rng.normal(size=(num_settings, 5, 1)) * np.sqrt(0.5)
    runs = runs + (rng.normal(size=(num_settings, 5, num_times)) * new).cumsum(-1)
    runs = runs * seed_noise[:, None, None] + rng.normal(size=(1, 5, num_times)) * 0.02  # seeds that all settings share
    images = rng.normal(size=(24, 1)) * 0.7 + rng.normal(size=(num_settings, 1, 1, 24, 1)) * 0.005
    noise = rng.normal(size=(*runs.shape, 24, 2)) * 0.01
    log_errors = (true_loss[:, None] + runs)[..., None, None] + images + noise
    return Grid([str(i) for i in range(num_settings)], STEPS, log_errors)


def apart(differences: Sequence[float]) -> np.ndarray:
    """True log losses that fall alike, and differ by these fractions throughout."""
    return np.array(differences)[:, None] - 0.4 * TIMES


def late(differences: Sequence[float]) -> np.ndarray:
    """True log losses whose order is reversed at the beginning: the later a setting is best, the better it ends."""
    return np.array(differences)[:, None] * (1.5 * TIMES - 0.5) - 0.4 * TIMES


LADDER = [0, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.4]
EQUALS = [0, *[0.006] * 8]
TIE = [0, 0.007, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.4]


@dataclass(frozen=True)
class World:
    """What races are held on."""

    name: str
    draw: Callable[[np.random.Generator], tuple[Grid, np.ndarray]]  # a grid, and the true log losses at its end


def worlds() -> list[World]:
    """The rows of the table."""

    def recorded(*gammas: str) -> Callable[[np.random.Generator], tuple[Grid, np.ndarray]]:
        grid = Grid.recorded([f"snr_gamma={gamma}" for gamma in gammas])
        return lambda rng: (grid.drawn_anew(rng), grid.loss())

    def known(curves: np.ndarray, noise: np.ndarray) -> Callable[[np.random.Generator], tuple[Grid, np.ndarray]]:
        def draw(rng: np.random.Generator) -> tuple[Grid, np.ndarray]:
            shuffled = rng.permutation(noise)
            return simulated(rng, curves, shuffled), curves[:, -1]

        return draw

    return [
        World("recorded, snr_gamma 0.2, 1, 5", recorded("0.2", "1", "5")),
        World("recorded, snr_gamma 1, 5, 20", recorded("1", "5", "20")),
        World("simulated, best by 3 %", known(apart(LADDER), STEADY)),
        World("simulated, best by 3 %, behind at first", known(late(LADDER), STEADY)),
        World("simulated, best by 3 %, some settings noisier", known(apart(LADDER), UNSTEADY)),
        World("simulated, best by 0.7 %", known(apart(TIE), STEADY)),
        World("simulated, best by 0.7 %, some settings noisier", known(apart(TIE), UNSTEADY)),
        World("simulated, best by 0.6 %, all others equal", known(apart(EQUALS), STEADY)),
        World("simulated, all within 0.8 %", known(apart(np.arange(9) * 0.001), STEADY)),
    ]


def some_races(name: str, seed: int, number: int) -> list[tuple[Replay, Replay]]:
    """Races on the world of this name, each on its own grid, and what the complete grid tells by the same bounds."""
    rng = np.random.default_rng([seed, number])
    draw = next(world.draw for world in worlds() if world.name == name)
    grids = [draw(rng) for _ in range(number)]
    return [(replay(*drawn), replay(*drawn, rounds=(), first_seeds=drawn[0].log_errors.shape[1])) for drawn in grids]


def row(name: str, replays: Sequence[tuple[Replay, Replay]]) -> str:
    """A row of the table."""
    races, grids = zip(*replays, strict=True)
    shares = np.array([race.share for race in races])
    clear = np.array([grid.right for grid in grids])
    cells = [
        name,
        f"{clear.mean():.0%}",
        f"{np.median(shares[clear]):.0%}" if clear.any() else "",
        f"{np.median(shares):.0%} ({np.quantile(shares, 0.1):.0%} to {np.quantile(shares, 0.9):.0%})",
        f"{np.mean([race.right for race in races]):.1%}",
        f"{np.mean([race.wrong for race in races]):.1%}",
        f"{np.mean([race.excess is None for race in races]):.1%}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--races", type=int, default=1000, help="on each grid (default: 1000)")
    parser.add_argument("--record", type=Path, metavar="SWEEP", help="write race_grid.npz from a complete grid")
    arguments = parser.parse_args()
    if arguments.record:
        record(arguments.record)
        return
    print("| grid | the full grid finds the best | cost of these races | cost of all | right | wrong | can't tell |")
    print("|---|---|---|---|---|---|---|")
    parts = 10
    with ProcessPoolExecutor() as pool:
        for world in worlds():
            batches = pool.map(some_races, [world.name] * parts, range(parts), [arguments.races // parts] * parts)
            print(row(world.name, list(itertools.chain.from_iterable(batches))), flush=True)


if __name__ == "__main__":
    main()
