"""A race: which runs train how far next, and when it is decided.

The runs of all settings advance in rounds. After each, settings that are worse beyond doubt stop; after the last, seeds
are added where the leaders can't be told apart. Every decision is a function of what the runs have measured, so a race
that was killed, or one that is replayed from the records of a full grid, takes the same decisions again.
"""

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from t2i.comparison.race_rules import Bounds, Measurement, Runs, SeedNoise, bounds


class Member(NamedTuple):
    """A run that takes part."""

    setting: str
    seed: int


OF_MORE_SEEDS = 0.3  # part of the risk that all looks with added seeds share
Measure = Callable[[Member, int], Measurement | None]  # of a run at a step; None if the run has failed


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How a race is run. Steps are optimizer steps."""

    rounds: Sequence[int]  # the steps after which settings are compared; the last is the end
    seeds: Sequence[int]  # in the order in which they join
    first_seeds: int  # with how many each setting begins
    risk: float  # probability that the race errs
    tolerance: float  # differences that do not matter, as a fraction: 0.005 = half a per cent
    begin: int = 0  # the step of a common trunk, if the runs are forks
    affords: Callable[[int, int], bool] = lambda spent, total: True
    """Whether, after `spent` steps over all runs, the budget suffices for `total`."""

    @property
    def looks(self) -> list[tuple[int, int]]:
        """After which step, with how many seeds: first through the rounds, then with one more seed each time."""
        more = range(self.first_seeds + 1, len(self.seeds) + 1)
        return [(step, self.first_seeds) for step in self.rounds] + [(self.rounds[-1], number) for number in more]

    def risk_of(self, num_seeds: int) -> float:
        """The part of the risk that a look may spend: most of it goes to the rounds, as what stops early saves most."""
        more = len(self.seeds) - self.first_seeds
        if num_seeds > self.first_seeds:
            return self.risk * OF_MORE_SEEDS / more
        return self.risk * (1 - OF_MORE_SEEDS if more else 1) / len(self.rounds)


@dataclass(frozen=True)
class Lead:
    """By how much a setting is worse than the leader."""

    now: Bounds
    at_end: Bounds  # if differences keep changing with every doubling of the steps

    @property
    def low(self) -> float:
        return min(self.now.low, self.at_end.low)


NO_DIFFERENCE = Bounds(0.0, 0.0, 0.0)
UNKNOWN = Lead(*[Bounds(0.0, -math.inf, math.inf)] * 2)


@dataclass(frozen=True)
class Look:
    """What was seen after a round."""

    step: int
    seeds: int
    spent: int  # steps over all runs, up to this round
    leader: str
    leads: dict[str, Lead]  # of the other settings in the race, best first
    stopped: list[str]


@dataclass
class Race:
    """A race among `settings`; `rounds` runs it."""

    settings: Sequence[str]
    rules: Rules
    left: list[str] = field(init=False)  # in the race, best first
    failed: list[str] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    reached: dict[Member, int] = field(default_factory=dict)  # the step of each run
    winner: str | None = None  # the best setting, or one that is at most `tolerance` worse
    ended_by: Literal["winner", "seeds", "budget", "failures"] | None = None  # None: it goes on
    changed: bool = False  # its rules or settings, after it had begun
    weights: str = "raw"  # which are compared: raw or averaged

    def __post_init__(self) -> None:
        self.left = list(self.settings)

    @property
    def spent(self) -> int:
        """Steps over all runs."""
        return self._steps(self.reached)

    def _steps(self, reached: dict[Member, int]) -> int:
        return sum(step - self.rules.begin for step in reached.values())

    @property
    def full_grid(self) -> int:
        """Steps of all settings with all seeds."""
        return len(self.settings) * len(self.rules.seeds) * (self.rules.rounds[-1] - self.rules.begin)

    def rounds(self, measure: Measure) -> Generator[dict[Member, int]]:
        """Yield the runs of each round, and to which step they train; what they measure decides on the next.

        After the last round there is a `winner`, or what was seen does not single one out.
        """
        tables: dict[int, dict[str, Runs]] = {}  # by step
        for step, num_seeds in self.rules.looks:
            runs = {Member(setting, seed): step for setting in self.left for seed in self.rules.seeds[:num_seeds]}
            if not self.rules.affords(self.spent, self._steps(self.reached | runs)):
                self.ended_by = "budget"
                return
            self.reached |= runs
            yield runs
            table = self._measured(runs, measure)
            if len(table) < 2:
                self.ended_by = "failures"
                return
            self._look(step, num_seeds, table, [earlier for at, earlier in tables.items() if at != step])
            tables[step] = table
            if self.winner is not None:
                break
        self.ended_by = "seeds" if self.winner is None else "winner"
        if self.winner is not None:  # one model of it is finished, if the budget suffices
            last = Member(self.winner, self.rules.seeds[0])
            finished = self.reached | {last: self.rules.rounds[-1]}
            if finished != self.reached and self.rules.affords(self.spent, self._steps(finished)):
                self.reached = finished
                yield {last: finished[last]}

    def _measured(self, runs: dict[Member, int], measure: Measure) -> dict[str, Runs]:
        """The measurements by setting; a setting of which a run has failed is out."""
        table: dict[str, Runs] = {}
        for setting in self.left:
            measured = [measure(run, step) for run, step in runs.items() if run.setting == setting]
            if None in measured:
                self.failed.append(setting)
            else:
                table[setting] = [measurement for measurement in measured if measurement is not None]
        self.left = list(table)
        return table

    def _look(self, step: int, num_seeds: int, table: dict[str, Runs], earlier: list[dict[str, Runs]]) -> None:
        """Compare every setting with the leader; stop those that are worse, and see whether the race is decided.

        earlier: the tables of other steps.
        """
        level = self.rules.risk_of(num_seeds) / (len(table) - 1)
        leader, *others = ranked = sorted(table, key=lambda setting: sum(run.now for run in table[setting]))
        ways = []  # how much worse the others are now, and at the end
        begin, end = self.rules.begin, self.rules.rounds[-1]
        for doublings in (0.0, math.log2((end - begin) / (step - begin))):
            noise = SeedNoise.of(table, doublings).pooled(SeedNoise.of(other, doublings) for other in earlier)
            ways.append([bounds(table, setting, leader, noise, level, doublings) for setting in others])
        leads = {setting: Lead(now, at_end) for setting, now, at_end in zip(others, *ways, strict=True)}
        if step < end:  # what is the same to the last bit has not begun to differ
            leads = {setting: UNKNOWN if lead.now == NO_DIFFERENCE else lead for setting, lead in leads.items()}
        stopped = [setting for setting, lead in leads.items() if lead.low > 0]
        self.left = [setting for setting in ranked if setting not in stopped]
        self.looks.append(Look(step, num_seeds, self.spent, leader, leads, stopped))
        tolerated = math.log1p(self.rules.tolerance)
        if all(leads[setting].low > -tolerated for setting in self.left[1:]):
            self.winner = leader
