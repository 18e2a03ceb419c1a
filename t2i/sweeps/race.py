"""A race: which runs train how far next, and when it is decided.

The runs of all settings advance in rounds. After each, settings that are worse beyond doubt stop; after the last, seeds
are added where the leaders can't be told apart. Where seeds differ so much that further steps would tell less than
further seeds, the seeds join after the first round already: once a race has seen that round, it chooses between the
two. Every decision is a function of what the runs have measured, so a race that was killed, or one that is replayed
from the records of a full grid, takes the same decisions again.
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


# Parts of the risk. All looks of a kind share one, whether or not they are taken, so a race may choose among them.
ROUNDS = 0.4  # with the first seeds: most of it, as what stops early saves most
SEEDS = 0.35  # added after the first round
LAST_SEEDS = 0.15  # added after the last one
ROUNDS_OF_ALL = 0.1  # with all seeds
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

    def risk_of(self, step: int, num_seeds: int, early: bool) -> float:
        """The part of the risk that a look may spend. early: whether seeds join after the first round."""
        rounds, more = len(self.rounds), len(self.seeds) - self.first_seeds
        if not more:
            return self.risk / rounds
        unused = SEEDS + ROUNDS_OF_ALL if rounds == 1 else 0.0
        if num_seeds == self.first_seeds:
            part = ROUNDS / rounds
        elif not early:
            part = LAST_SEEDS / more
        else:
            part = SEEDS / more if step == self.rounds[0] else ROUNDS_OF_ALL / (rounds - 1)
        return self.risk * part / (1 - unused)


@dataclass(frozen=True)
class Lead:
    """By how much a setting is worse than the leader."""

    now: Bounds
    at_end: Bounds  # if differences keep changing with every doubling of the steps

    @property
    def low(self) -> float:
        return min(self.now.low, self.at_end.low)

    def with_seeds(self, ratio: float) -> float:
        """About `low`, were there so many times as many seeds and the estimates the same.

        Few seeds tell little of the mean and little of its error, so with more, bounds narrow faster than 1/√seeds.
        """
        return min(each.estimate - (each.estimate - each.low) / ratio for each in (self.now, self.at_end))

    def after(self, part: float) -> float:
        """`low`, this part of the doublings to the end later, if the trend lasts."""
        now, end = self.now, self.at_end
        change, wider = part * (end.estimate - now.estimate), (end.estimate - end.low) - (now.estimate - now.low)
        return min(now.low + change, end.low + part * wider)


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
    early: bool = False  # whether seeds join after the first round, rather than after the last
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
        at: tuple[int, int] | None = self.rules.rounds[0], self.rules.first_seeds
        while at is not None and self.winner is None:
            step, num_seeds = at
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
            tables[step] = tables.get(step, {}) | table
            self._look(step, num_seeds, table, tables)
            at = self._next(step, num_seeds)
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

    def _next(self, step: int, num_seeds: int) -> tuple[int, int] | None:
        """After which step, with how many seeds, settings are compared next; None if this was the last time."""
        rounds, first = self.rules.rounds, self.rules.first_seeds
        number = rounds.index(step)
        if number == 0 and num_seeds == first:
            self.early = len(rounds) > 1 and first < len(self.rules.seeds) and self._seeds_tell_more()
        if num_seeds < len(self.rules.seeds) and (self.early or number + 1 == len(rounds)):
            return step, num_seeds + 1
        return (rounds[number + 1], num_seeds) if number + 1 < len(rounds) else None

    def _seeds_tell_more(self) -> bool:
        """Whether further seeds would stop the other settings at a lower cost than further rounds.

        As far as one can tell: if estimates and trends stay.
        """
        look, begin, seeds = self.looks[-1], self.rules.begin, len(self.rules.seeds)
        more = range(look.seeds + 1, seeds + 1)
        parts = [(step - begin) / (look.step - begin) for step in self.rules.rounds[1:]]  # costs in runs to this step
        saved = 0.0
        for lead in (look.leads[setting] for setting in self.left[1:]):
            everything = seeds * parts[-1] - look.seeds
            by_seeds = (number - look.seeds for number in more if lead.with_seeds(number / look.seeds) > 0)
            by_rounds = (look.seeds * (part - 1) for part in parts if lead.after(math.log(part, parts[-1])) > 0)
            saved += next(by_rounds, everything) - next(by_seeds, everything)
        return saved > 0

    def _look(self, step: int, num_seeds: int, table: dict[str, Runs], tables: dict[int, dict[str, Runs]]) -> None:
        """Compare every setting with the leader; stop those that are worse, and see whether the race is decided.

        tables: of all runs, by step.
        """
        level = self.rules.risk_of(step, num_seeds, self.early) / (len(table) - 1)
        leader, *others = ranked = sorted(table, key=lambda setting: sum(run.now for run in table[setting]))
        ways = []  # how much worse the others are now, and at the end
        begin, end = self.rules.begin, self.rules.rounds[-1]
        for doublings in (0.0, math.log2((end - begin) / (step - begin))):
            noises = {at: SeedNoise.of(of_all, doublings) for at, of_all in tables.items()}
            noise = noises.pop(step).pooled(noises.values())
            ways.append([bounds(table, setting, leader, noise, level, doublings) for setting in others])
        leads = {setting: Lead(now, at_end) for setting, now, at_end in zip(others, *ways, strict=True)}
        if step < end:  # what is the same to the last bit has not begun to differ
            same = [setting for setting in others if _values(table[setting]) == _values(table[leader])]
            leads |= dict.fromkeys(same, UNKNOWN)
        stopped = [setting for setting, lead in leads.items() if lead.low > 0]
        self.left = [setting for setting in ranked if setting not in stopped]
        self.looks.append(Look(step, num_seeds, self.spent, leader, leads, stopped))
        tolerated = math.log1p(self.rules.tolerance)
        if all(leads[setting].low > -tolerated for setting in self.left[1:]):
            self.winner = leader


def _values(runs: Runs) -> list[float]:
    return [run.now for run in runs]
