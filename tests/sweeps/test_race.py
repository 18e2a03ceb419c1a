"""Races on tables of errors: what stops, what is added, when it is decided, and how often it errs."""

import json
from pathlib import Path

import numpy as np
import pytest

from t2i.comparison.race_rules import Measurement, SeedNoise, bounds
from t2i.sweeps.job import SweepError
from t2i.sweeps.race import Member, Race
from t2i.sweeps.race_options import RaceOptions, labels
from t2i.sweeps.race_report import explain_look, record, summary

STEPS = [16, 32, 64, 128, 256]
OPTIONS = {"rounds": [0.125, 0.25, 0.5], "first_seeds": 2, "confidence": 0.95, "tolerance": 0.005}
NO_BUDGET = {"budget_runs": None, "budget_hours": None}


def grid(differences, seed_noise=0.002, num_seeds=5, trend=0.0) -> np.ndarray:
    """Errors of settings × seeds × steps on 16 images at 2 levels. trend: added to the differences at each doubling."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(len(differences), num_seeds, 1)) * seed_noise
    loss = (
        np.array(differences)[:, None, None] + noise + trend * np.arange(5) * np.arange(len(differences))[:, None, None]
    )
    images = rng.normal(size=(16, 1)) * 0.5
    return np.exp(loss[..., None, None] + images + rng.normal(size=(*loss.shape, 16, 2)) * 0.002)


def race(errors, failing=(), **options) -> Race:
    """Run a race on such a table to its end. failing: members whose runs fail."""
    rules = RaceOptions(**(OPTIONS | NO_BUDGET | options)).rules(
        len(errors), range(errors.shape[1]), 256, 16, lambda: 0.0
    )
    race = Race([str(i) for i in range(len(errors))], rules)

    def measure(member: Member, step: int) -> Measurement | None:
        if member in failing:
            return None
        now, before = (errors[int(member.setting), member.seed, STEPS.index(at)] for at in (step, step // 2))
        return Measurement.of(now, before)

    for _ in race.rounds(measure):
        pass
    return race


def test_what_is_worse_stops_and_the_best_is_trained_to_its_end():
    ended = race(grid([0.3, 0.0, 0.2, 0.4]))
    assert ended.winner == "1"
    assert ended.looks[0].stopped == ["2", "0", "3"]
    assert ended.reached == {Member(s, seed): 32 for s in "0123" for seed in (0, 1)} | {Member("1", 0): 256}
    assert ended.spent == 8 * 32 + 256 - 32
    assert ended.spent < ended.full_grid / 10


def test_settings_that_are_alike_to_the_tolerance_end_the_race():
    ended = race(grid([0.0, 0.0001, 0.3], seed_noise=0.00002))
    assert set(ended.left) == {"0", "1"}
    assert summary(ended, 0.0)[0].startswith(f"Best or within 0.5% of the best: {ended.winner} (step ")


def test_the_cost_of_a_look_is_that_of_its_round():
    """Not of the next round, which is planned before anything is said."""
    ended = race(grid([0.0, 0.01, 0.02], seed_noise=0.03))
    assert [look.spent for look in ended.looks[:3]] == [6 * 32, 6 * 64, 6 * 128]
    assert "192 of the full grid's 3,840 steps" in explain_look(ended.looks[0], ended)[0]


def test_times_are_told_in_fitting_units():
    ended = race(grid([0.3, 0.0, 0.2, 0.4]))
    told = [next(line for line in summary(ended, hours) if line.startswith("Cost")) for hours in (0.01, 0.5, 3.0)]
    assert ["36 s" in told[0], "30.0 minutes" in told[1], "3.0 hours" in told[2]] == [True] * 3


def test_leaders_that_cannot_be_told_apart_get_all_seeds_and_no_winner():
    ended = race(grid([0.0, 0.008, 0.3], seed_noise=0.03))
    assert ended.winner is None
    assert [(look.step, look.seeds) for look in ended.looks] == [
        (32, 2),
        (64, 2),
        (128, 2),
        *((256, n) for n in (2, 3, 4, 5)),
    ]
    assert ended.reached[Member(ended.left[0], 4)] == 256
    assert "2" in ended.looks[-1].stopped or "2" not in ended.left
    assert summary(ended, 0.0)[0].startswith("All seeds have run, and no setting is best beyond doubt.")


def test_a_setting_that_catches_up_is_not_stopped():
    """It is 6 % worse at the first round, which is beyond doubt, and gains 5 % with every doubling."""
    errors = grid([0.0, 0.16], seed_noise=0.0005, trend=-0.05)
    ended = race(errors)
    assert not ended.looks[0].stopped
    assert ended.looks[0].leads["1"].now.low > 0 > ended.looks[0].leads["1"].at_end.estimate
    assert ended.winner == "1"


def test_the_projection_follows_curves_that_are_straight_in_the_logarithm_of_the_steps():
    errors = grid([0.0, 0.16], seed_noise=0.0, trend=-0.05)
    table = {
        setting: [Measurement.of(errors[i, seed, 1], errors[i, seed, 0]) for seed in range(5)]
        for i, setting in enumerate("ab")
    }
    projected = bounds(table, "b", "a", SeedNoise.of(table, 3.0), 0.01, doublings=3.0)
    measured = np.log(errors[1, :, 4].mean(1) / errors[0, :, 4].mean(1)).mean()
    assert projected.low < measured < projected.high
    assert projected.estimate == pytest.approx(measured, abs=0.01)


def test_seeds_join_after_the_first_round_where_they_tell_more_than_steps():
    noisy, crossing = grid([0, 0.06, 0.06], seed_noise=0.012), grid([0, -0.03, -0.06], seed_noise=0.002, trend=0.03)
    ended = race(noisy)
    assert [(look.step, look.seeds) for look in ended.looks] == [(32, 2), (32, 3)]
    assert ended.winner == "0"
    assert "further seeds tell more" in explain_look(ended.looks[0], ended)[-1]
    assert {(look.step, look.seeds) for look in race(crossing).looks} >= {(32, 2), (64, 2)}


@pytest.mark.parametrize(("rounds", "seeds"), [([0.25, 0.5, 0.75], 5), ([], 5), ([0.25], 2)])
def test_all_looks_that_a_race_may_take_share_its_risk(rounds, seeds):
    rules = RaceOptions(**(OPTIONS | NO_BUDGET | {"rounds": rounds})).rules(9, range(seeds), 256, 16, lambda: 0.0)
    first, last, more = rules.rounds[0], rules.rounds[-1], range(3, seeds + 1)
    looks = {(step, 2, False) for step in rules.rounds} | {(last, number, False) for number in more}
    if more and first != last:
        looks |= {(first, number, True) for number in more} | {(step, seeds, True) for step in rules.rounds}
    assert sum(rules.risk_of(*look) for look in looks) == pytest.approx(0.05)


def test_a_failed_run_takes_its_setting_out_and_is_named():
    ended = race(grid([0.0, 0.1, 0.3]), failing=[Member("0", 1)])
    assert ended.winner == "1"
    assert summary(ended, 0.0)[-1] == "Not judged, as runs of it failed: 0."
    alone = race(grid([0.0, 0.1]), failing=[Member("0", 1)])
    assert alone.winner is None, "the only one that is left has beaten nobody"


def test_a_budget_ends_the_race_before_a_round_that_it_does_not_cover():
    errors = grid([0.0, 0.01, 0.02], seed_noise=0.03)
    ended = race(errors, budget_runs=2.0)
    assert ended.ended_by == "budget"
    assert ended.spent == 6 * 64 <= 2 * 256 < 6 * 128
    assert race(errors).spent > ended.spent


def test_the_budget_in_hours_follows_the_speed_so_far():
    affords = RaceOptions(**OPTIONS, budget_runs=None, budget_hours=3.0).rules(9, [0, 1], 256, 16, lambda: 1.0).affords
    assert affords(0, 10_000)  # nothing is known yet
    assert affords(100, 300)
    assert not affords(100, 301)


def as_runs(x) -> dict[str, list[Measurement]]:
    """Settings with runs of these log losses."""
    return {str(i): [Measurement(value, 0.0, *(np.zeros(2),) * 3) for value in row] for i, row in enumerate(x)}


def test_the_common_noise_is_the_mean_square_of_the_interaction():
    x = np.random.default_rng(1).normal(size=(6, 4))
    noise = SeedNoise.of(as_runs(x), 0.0)
    interaction = x - x.mean(0) - x.mean(1, keepdims=True) + x.mean()
    assert noise.dof == 15
    assert noise.sum_of_squares == pytest.approx(np.square(interaction).sum())


def test_the_noise_of_settings_with_further_seeds_is_that_of_a_least_squares_fit():
    """Nine settings have two seeds, five of them three more: an incomplete two-way table."""
    rng = np.random.default_rng(1)
    numbers = [5] * 5 + [2] * 4
    x = rng.normal(size=(9, 5)) + 30 * rng.normal(size=(9, 1)) + 30 * rng.normal(size=5)
    noise = SeedNoise.of(as_runs([row[:number] for row, number in zip(x, numbers, strict=True)]), 0.0)
    cells = [(i, s) for i, number in enumerate(numbers) for s in range(number)]
    effects = np.array([[*np.eye(9)[i], *np.eye(5)[s]] for i, s in cells])
    _, _, rank, _ = np.linalg.lstsq(effects, ran := np.array([x[cell] for cell in cells]))
    residuals = ran - effects @ np.linalg.pinv(effects) @ ran
    assert noise.dof == len(cells) - rank
    assert noise.sum_of_squares == pytest.approx(np.square(residuals).sum(), rel=1e-6)


@pytest.mark.parametrize("numbers", [[3] * 6, [2] * 4 + [4] * 2])
def test_a_setting_with_wild_runs_does_not_blur_the_others(numbers):
    """Nor where it and one other alone have further seeds, which differ by more than the runs of a seed do."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(6, 4)) * np.array([1, 1, 1, 1, 1, 100])[:, None] + 500 * np.arange(4)
    noise = SeedNoise.of(as_runs([row[:number] for row, number in zip(x, numbers, strict=True)]), 0.0)
    assert noise.variance("0") < 4
    assert 1000 < noise.variance("5") < 100_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": [0.5, 1.5]}, "rounds=.* must be fractions"),
        ({"first_seeds": 1}, "first_seeds=1 must be at least 2"),
        ({"confidence": 95}, "confidence=95 must be between"),
        ({"tolerance": -1}, "tolerance=-1 must be a fraction"),
        ({"budget_runs": 0}, "budget_runs=0 must be a number of runs"),
        ({"budget_hours": -1}, "budget_hours=-1 must be a number of hours"),
    ],
)
def test_options_that_make_no_race_are_refused(options, message):
    with pytest.raises(SweepError, match=message):
        RaceOptions(**(OPTIONS | NO_BUDGET | options))


def test_rounds_fall_on_validations_that_have_another_at_half_of_their_step():
    rules = RaceOptions(**OPTIONS, **NO_BUDGET).rules(9, [0, 1], 1000, 100, lambda: 0.0)
    assert rules.rounds == [200, 300, 500, 1000]
    of_forks = RaceOptions(**OPTIONS, **NO_BUDGET).rules(9, [0, 1], 2000, 50, lambda: 0.0, begin=1010)
    assert of_forks.rounds == [1150, 1300, 1550, 2000]


def test_what_has_not_begun_to_differ_is_not_alike():
    """Settings that act late, such as the length of a decay: a race must not end before they do."""
    errors = grid([0.0, 0.3, 0.3], seed_noise=0.002)
    errors[2] = errors[1]
    errors[1:, :, -1] *= np.array([1.1, 1.0])[:, None, None, None]
    ended = race(errors[1:])
    assert not ended.looks[0].stopped
    assert (ended.looks[-1].step, ended.winner) == (256, "1")
    assert "the same so far, goes on" in explain_look(ended.looks[0], ended)[1]
    assert "Infinity" not in json.dumps(record(ended, 0.0))


def test_only_the_steps_after_a_common_trunk_count():
    rules = RaceOptions(**OPTIONS, **NO_BUDGET).rules(2, [0, 1], 200, 4, lambda: 0.0, begin=100)
    forks = Race(["a", "b"], rules)
    next(forks.rounds(lambda member, step: None))
    assert forks.full_grid == 400
    assert forks.spent == 4 * (rules.rounds[0] - 100)


def test_one_seed_or_one_setting_is_no_race():
    with pytest.raises(SweepError, match="begins with 2 seeds"):
        RaceOptions(**OPTIONS, **NO_BUDGET).rules(9, [0], 256, 16, lambda: 0.0)
    with pytest.raises(SweepError, match="vary one besides the seed"):
        labels([["seed=0", "loss=minsnr"], ["seed=1", "loss=minsnr"]])


@pytest.mark.parametrize(("settings", "seeds", "first"), [(9, 5, 2), (7, 5, 2), (4, 5, 3), (2, 5, 5), (2, 9, 7)])
def test_few_settings_begin_with_more_seeds(settings, seeds, first):
    options = RaceOptions(**(OPTIONS | NO_BUDGET | {"first_seeds": None}))
    assert options.rules(settings, range(seeds), 256, 16, lambda: 0.0).first_seeds == first


def test_settings_are_named_by_what_is_varied():
    jobs = [["sweep=x", f"optimizer.lr={lr}", f"seed={seed}"] for lr in ("1e-3", "3e-3") for seed in (0, 1)]
    assert labels(jobs) == ["optimizer.lr=1e-3"] * 2 + ["optimizer.lr=3e-3"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["some settings noisier", "behind at first", "all others equal", "best by 0.7 %"])
def test_at_most_one_race_in_twenty_errs(monkeypatch, name):
    """The simulated grids of benchmarks/race.py, 200 races on each."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    import race as benchmark

    world = next(world for world in benchmark.worlds() if world.name.endswith(name))
    replays = benchmark.some_races(world.name, 0, 200)
    assert sum(race.wrong for race, _ in replays) <= 10
