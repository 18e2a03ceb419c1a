"""What a race can be run on, and the options of hydra/launcher=racing."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from t2i.sweeps.job import SweepError
from t2i.sweeps.race import Rules

DOF = 6  # with so many degrees of freedom, the noise of seeds is known well enough to begin


@dataclass(frozen=True, kw_only=True)
class RaceOptions:
    """The options of conf/hydra/launcher/racing.yaml that concern the race."""

    rounds: Sequence[float]
    first_seeds: int | None
    confidence: float
    tolerance: float
    budget_runs: float | None
    budget_hours: float | None

    def __post_init__(self) -> None:
        checks = {
            "rounds": (all(0 < part < 1 for part in self.rounds), "must be fractions between 0 and 1"),
            "first_seeds": (
                self.first_seeds is None or self.first_seeds >= 2,
                "must be at least 2: one seed can't tell a setting from its luck",
            ),
            "confidence": (0.5 < self.confidence < 1, "must be between 0.5 and 1, such as 0.95"),
            "tolerance": (0 <= self.tolerance < 1, "must be a fraction, such as 0.005 for half a per cent"),
            "budget_runs": (self.budget_runs is None or self.budget_runs > 0, "must be a number of runs, or null"),
            "budget_hours": (self.budget_hours is None or self.budget_hours > 0, "must be a number of hours, or null"),
        }
        for name, (holds, why) in checks.items():
            if not holds:
                raise SweepError(f"t2i: hydra.launcher.{name}={getattr(self, name)} {why}")

    def rules(
        self,
        settings: int,
        seeds: Sequence[int],
        steps: int,
        validate_every: int,
        hours: Callable[[], float],
        begin: int = 0,
    ) -> Rules:
        """The rules for so many settings and steps. hours: trained so far. begin: see `Rules`."""
        if len(seeds) < (self.first_seeds or 2):
            raise SweepError(
                f"t2i: a race begins with {self.first_seeds or 2} seeds of every setting, and adds more where they are "
                "needed; add seed=0,1,2,3,4 to the command"
            )
        enough = 1 + math.ceil(DOF / (settings - 1))  # (M − 1)(S − 1) degrees of freedom of the seeds' noise
        own = steps - begin
        rounds = sorted({_round(begin + part * own, begin, steps, validate_every) for part in self.rounds} - {steps})

        def affords(spent: int, total: int) -> bool:
            if self.budget_runs is not None and total > self.budget_runs * own:
                return False
            return self.budget_hours is None or not spent or hours() * total / spent <= self.budget_hours

        return Rules(
            rounds=[*rounds, steps],
            begin=begin,
            seeds=seeds,
            first_seeds=self.first_seeds or min(max(enough, 2), len(seeds)),
            risk=1 - self.confidence,
            tolerance=self.tolerance,
            affords=affords,
        )


def _round(after: float, begin: int, steps: int, validate_every: int) -> int:
    """The first validation at or after a step that has another in the first half of the way from `begin`."""
    first = (begin // validate_every + 1) * validate_every
    least = max(after, begin + 2 * (first - begin))
    return min(math.ceil(least / validate_every) * validate_every, steps)


def labels(overrides: Sequence[Sequence[str]]) -> list[str]:
    """The setting of each job, such as `loss.snr_gamma=5 optimizer.lr=1e-3`: what is varied, without the seed."""
    pairs = [[override.partition("=") for override in job] for job in overrides]
    jobs = [{key: value for key, _, value in job if key != "seed"} for job in pairs]
    varied = [key for key in jobs[0] if len({job.get(key) for job in jobs}) > 1]
    if not varied:
        raise SweepError("t2i: a race compares settings; vary one besides the seed, such as loss.snr_gamma=1,5,20")
    return [" ".join(f"{key}={job[key]}" for key in varied) for job in jobs]


def refuse_unsuitable(configs: Sequence[DictConfig]) -> None:
    """Refuse jobs that can't be compared on the way. Raises SweepError."""
    for key, why in {
        "steps": "a race compares runs after the same number of steps; run `t2i train -m` without racing",
        "validate_every": "a race compares validations; give all runs the same validate_every",
        "validation.fold": "a race compares runs on the same images; leave folds out",
    }.items():
        if len({str(OmegaConf.select(config, key)) for config in configs}) > 1:
            raise SweepError(f"t2i: {key} is varied: {why}")
    first = configs[0]
    if not first.validate_every:
        raise SweepError("t2i: a race compares validations; set validate_every, such as an eighth of the steps")
    if any(config.early_stop.patience is not None for config in configs):
        raise SweepError("t2i: a race decides when runs end; set early_stop.patience=null")
