"""`t2i plan`: from a pilot's run folders to a plan in words, with a command that compare's own settings understand."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from helpers.synthetic import write_run

from t2i import plan
from t2i.comparison.costs import cost_of
from t2i.comparison.grouping import compare
from t2i.comparison.power import Size, power
from t2i.comparison.results import read_results
from t2i.comparison.wording import sentences
from t2i.config import ConfigError


def write_pilot(folder, seeds=5, effect=0.002, **info):
    """Two settings, whose difference varies from seed to seed."""
    spread = np.random.default_rng(0).normal(0, 0.01, seeds)
    for seed in range(seeds):
        for gamma, better in ((1, 0.0), (5, effect + spread[seed])):
            overrides = (f"seed={seed}", f"loss.snr_gamma={gamma}", "batch_size=8", "sweep=pilot")
            run = write_run(folder / f"{gamma}-{seed}", *overrides, better=better, **info)
            take_time(run / "metrics.jsonl")
    return folder


def take_time(metrics):
    """0.16 s for each of 200 steps, as 50 images of 8 per step take, and 18 s for each validation."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    for validations, line in enumerate(lines, start=1):
        line["speed/hours"] = (0.16 * line["step"] + 18 * validations) / 3600
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def pilot(tmp_path_factory):
    return write_pilot(tmp_path_factory.mktemp("pilot"))


def planned(capsys, *arguments):
    plan.main([str(argument) for argument in arguments])
    return " ".join(capsys.readouterr().out.split())


def test_without_a_pilot_it_says_which_to_run(tmp_path, capsys):
    for arguments in ((), (tmp_path,)):
        assert "t2i train -m sweep=pilot seed=0,1,2,3,4" in planned(capsys, *arguments)


def test_a_plan_names_sizes_hours_and_the_sweep(pilot, capsys):
    said = planned(capsys, pilot, "--difference", "1%", "--power", "0.8")
    assert "difference of 1 % in val/loss with a probability of 80 %" in said
    assert "200 steps of 0.16 s, 3 validations of 18 s" in said
    command = re.search(r"t2i train -m sweep=planned seed=(\S+) .*loss.snr_gamma=1,5", said)
    assert command
    assert "sweep=pilot" not in command[0]
    assert "validation.items=" in said
    assert "batch_size=8" in said


def test_smaller_differences_and_more_comparisons_take_more(pilot, capsys):
    def seeds(*more):
        return int(re.search(r"seeds alone (\d+)", planned(capsys, pilot, *more))[1])

    few = seeds("--difference", "2%")
    assert few < seeds("--difference", "1%")
    assert few < seeds("--difference", "2%", "--comparisons", "5")
    assert few < seeds("--difference", "2%", "--power", "0.95")


def test_one_seed_tells_nothing_of_seeds(tmp_path, capsys):
    said = planned(capsys, write_pilot(tmp_path, seeds=1))
    assert "run the pilot with seed=0,1,2,3,4 first" in said
    assert "seeds alone" not in said


def test_hours_are_those_of_steps_and_of_validations_by_their_size(pilot):
    cost = cost_of(read_results([pilot]), Size(5, 24, 16))
    assert cost.per_step == pytest.approx(0.16)
    assert cost.per_validation == pytest.approx(18)
    run = 200 * 0.16 + 3 * 18
    assert cost.hours(Size(5, 24, 16), variants=2) == pytest.approx(10 * run / 3600)
    assert cost.hours(Size(5, 48, 16), variants=2) == pytest.approx(10 * (run + 3 * 18) / 3600)


def test_pauses_are_no_start_up(tmp_path):
    """A race pauses its runs after every round."""
    times = {"started": "2026-11-29T12:00:00+0000", "ended": "2026-11-29T12:02:26+0000"}  # 86 s of training in 146 s
    alone = write_pilot(tmp_path / "alone", seeds=2, **times)
    raced = write_pilot(tmp_path / "raced", seeds=2, paused_at=50, **times)
    assert cost_of(read_results([alone]), Size(2, 24, 16)).start == pytest.approx(60, abs=1)
    assert cost_of(read_results([raced]), Size(2, 24, 16)).start == 0


def test_without_records_of_time_there_are_no_hours(tmp_path, capsys):
    folder = write_pilot(tmp_path, seeds=2)
    for metrics in folder.rglob("metrics.jsonl"):
        metrics.write_text(re.sub(r', "speed/[^,}]*', "", metrics.read_text()))
    assert "so there are no hours" in planned(capsys, folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--difference", "150%"], "must be a part of the error"),
        (["--power", "1"], "must be a probability"),
        (["--metric", "val/none"], "can't be compared image by image"),
        (["missing"], "does not exist"),
    ],
)
def test_mistakes_end_in_one_line(pilot, arguments, message):
    with pytest.raises(ConfigError, match=message):
        plan.main([str(pilot), *arguments])


def test_one_setting_alone_has_no_differences(tmp_path):
    write_run(tmp_path / "a", "seed=0")
    write_run(tmp_path / "b", "seed=1")
    with pytest.raises(ConfigError, match="no two settings"):
        plan.main([str(tmp_path)])


def test_compare_says_what_it_could_have_found(pilot):
    comparison = compare(read_results([pilot]))
    (outcome, sentence), *_ = sentences(comparison, comparison.headline)
    assert outcome == "same"
    found = re.search(r"finds a difference of ([\d.]+) % in 80 % of cases; half of that takes (\d+) seeds", sentence)
    assert found
    difference, seeds = np.log1p(float(found[1]) / 100), int(found[2])
    (verdict,) = comparison.verdicts(comparison.headline)
    known = comparison.pilot(verdict.variant, comparison.headline)
    assert power(known, known.size, difference) == pytest.approx(0.8, abs=0.02)
    assert power(known, replace(known.size, seeds=seeds), difference / 2) == pytest.approx(0.8, abs=0.03)


def test_of_one_seed_compare_speaks_of_these_models_only(tmp_path):
    comparison = compare(read_results([write_pilot(tmp_path, seeds=1, effect=0.0)]))
    (outcome, sentence), *_ = sentences(comparison, comparison.headline)
    assert outcome == "same"
    assert "between these models" in sentence
    assert "seeds" not in sentence.partition("half of that")[2]
