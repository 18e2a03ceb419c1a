"""Runs a sweep as a race: `hydra/launcher=racing`."""

import json
import logging
import math
import time
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from t2i.comparison.race_notes import RECORD, REMEDY
from t2i.comparison.race_rules import Measurement
from t2i.config import ConfigError
from t2i.runs.errors_file import read_errors
from t2i.runs.files import atomic_write, numbered_file, read_json
from t2i.runs.folder import Run
from t2i.runs.records import ERRORS
from t2i.runs.text import one_line
from t2i.sweeps.job import Job, SweepError
from t2i.sweeps.launcher import Place, SweepRunner
from t2i.sweeps.race import Member, Race
from t2i.sweeps.race_options import RaceOptions, labels, refuse_unsuitable
from t2i.sweeps.race_report import FIXED, explain_look, record, summary, why_stopped
from t2i.sweeps.table import JobsTable

log = logging.getLogger(__name__)


class RacingRunner(SweepRunner):
    """Runs the jobs of a sweep as a race; the options are those of conf/hydra/launcher/racing.yaml."""

    def __init__(self, folder: Path, place: Place, options: RaceOptions, elsewhere: Launcher | None = None):
        """elsewhere: Hydra's launcher that runs the jobs of a round, instead of `place`."""
        super().__init__(folder, place)
        self.options, self.elsewhere = options, elsewhere
        self.members: dict[Member, Job] = {}
        self.begin = 0  # the step at which all jobs begin, if they are forks
        self.race: Race

    def run(self, configs: Iterable[DictConfig]) -> list[JobReturn]:
        """Race the settings of these jobs. After an interruption, the records lead to the same decisions again."""
        if self.jobs:
            raise SweepError(
                "t2i: a race must know all settings when it begins, and this sweeper chooses them on the way; use "
                "hydra/sweeper=basic, or hydra/launcher=processes"
            )
        configs = list(configs)
        refuse_unsuitable(configs)
        settings = set(labels([config.hydra.overrides.task for config in configs]))
        seeds = list(dict.fromkeys(config.seed for config in configs))
        self.options.rules(len(settings), seeds, configs[0].steps, configs[0].validate_every, self._hours)  # or refuse
        return super().run(configs)

    def _train(self, jobs: list[Job], table: JobsTable) -> None:
        settings = labels([job.overrides for job in jobs])
        self.members = {Member(setting, job.seed): job for setting, job in zip(settings, jobs, strict=True)}
        first = jobs[0]
        seeds = list(dict.fromkeys(member.seed for member in self.members))
        self.begin = max(job.begins_at for job in jobs)
        distinct = list(dict.fromkeys(settings))
        rules = self.options.rules(
            len(distinct), seeds, first.steps, first.validate_every, self._hours, begin=self.begin
        )
        race = self.race = Race(distinct, rules)
        race.changed = self._changed(race)
        told = 0
        for runs in race.rounds(self._measure):
            told = self._tell(race, told)
            self._run_round({self.members[member]: step for member, step in runs.items()}, table)
        self._tell(race, told)
        answer = summary(race, self._hours())
        for job in jobs:
            if job.unfinished:
                self._stop(job, answer[0] if job.metrics else "not needed")
        self._record(race)  # last, as `compare` tells by its date whether runs have gone on since
        for line in answer:
            log.info("%s", line)

    def _run_round(self, steps: dict[Job, int], table: JobsTable) -> None:
        """Run those of the jobs that have not been there yet."""
        if self.elsewhere is None:
            self._run_jobs(self._needed(steps), table)
            return
        self._wait_for_earlier(self._needed(steps), table)
        needed = self._needed(steps)
        if not needed:
            return
        calls = [[*job.overrides, *([f"stop_at={step}"] if step < job.steps else [])] for job, step in needed.items()]
        results: Sequence[JobReturn] = ()
        try:
            results = self.elsewhere.launch(calls, initial_job_idx=0)
        except Exception as error:  # of a job, which its folder tells; of the launcher
            log.warning("hydra.launcher.via: %s", one_line(error))
        for job, result in zip_longest(needed, results):
            job.read_end(_error_of(result))
            table.changed(job)

    def _needed(self, steps: dict[Job, int]) -> dict[Job, int]:
        return {job: step for job, step in steps.items() if job.state != "finished" and not self._was_there(job, step)}

    @staticmethod
    def _wait_for_earlier(jobs: Iterable[Job], table: JobsTable) -> None:
        """Wait for jobs that go on elsewhere although the command that began them was killed."""
        busy = [job for job in jobs if job.in_use()]
        if busy:
            log.info(
                "waiting for %d jobs that an earlier command began: %s", len(busy), ", ".join(j.name for j in busy)
            )
        for job in busy:
            while job.in_use():
                time.sleep(1.0)
            job.read_end()
            table.changed(job)

    @staticmethod
    def _was_there(job: Job, step: int) -> bool:
        return step < job.steps and _errors_file(job, step).is_file()

    def _measure(self, member: Member, step: int) -> Measurement | None:
        """What the run measured at the step; None if it has failed, which its job then says."""
        job = self.members[member]
        halfway = (self.begin + step) // 2 // job.validate_every * job.validate_every
        earlier = halfway if halfway > self.begin else step  # at the end, it does not matter
        doublings = math.log2((step - self.begin) / (earlier - self.begin)) or 1.0
        try:
            errors, before = (read_errors(_errors_file(job, at)) for at in (step, earlier))
            self.race.weights = "averaged" if "ema/" in errors else "raw"
            weights = "ema/" if "ema/" in errors else ""
            return Measurement.of(errors[weights], before[weights], doublings)
        except ConfigError as error:
            if job.state != "failed":
                job.fail(error)
            return None

    def _tell(self, race: Race, told: int) -> int:
        """Log the looks after the first `told`, and stop the runs of settings that are out. Returns their number."""
        for look in race.looks[told:]:
            for line in explain_look(look, race):
                log.info("%s", line)
            for member, job in self.members.items():
                if member.setting in look.stopped and job.unfinished:
                    self._stop(job, why_stopped(look, member.setting, job.steps) if job.metrics else "not needed")
        self._record(race)
        return len(race.looks)

    def _record(self, race: Race) -> None:
        content = record(race, self._hours())
        atomic_write(self.folder / RECORD, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def _changed(self, race: Race) -> bool:
        """Whether the race began with other rules, or other settings."""
        file = self.folder / RECORD
        try:
            before = read_json(file, REMEDY) if file.is_file() else {}
        except ConfigError as error:
            log.warning("%s", error)
            return False
        now = record(race, 0.0)
        return bool(before.get("changed")) or any(before.get(key, now[key]) != now[key] for key in FIXED)

    def _stop(self, job: Job, reason: str) -> None:
        """Note that the job stops where it is; hydra/launcher=processes would go on with it."""
        job.state, job.reason = "stopped", reason
        try:
            if job.info().get("stopped") != reason and job.metrics:
                Run.mark(job.folder, state="stopped", stopped=reason)
        except (ConfigError, OSError) as error:
            log.warning("%s is stopped, which could not be noted: %s", job.name, one_line(error))

    def _hours(self) -> float:
        """That all runs have trained."""
        return sum(job.metrics.get("speed/hours", 0.0) for job in self.members.values())


def _error_of(result: JobReturn | None) -> str:
    """Why a job failed elsewhere; "" if it has not, or nobody knows."""
    if result is not None and result.status == JobStatus.FAILED:
        try:
            _ = result.return_value
        except Exception as error:
            return one_line(error)
    return ""


def _errors_file(job: Job, step: int) -> Path:
    """The errors by which the run is judged: of held-out images, or of training images if there are no others."""
    files = [numbered_file(job.folder / ERRORS[battery], step, "parquet") for battery in ("", "train/")]
    return next((file for file in files if file.is_file()), files[0])
