"""From the votes of a file to what they say of a comparison's variants."""

import csv
import json
import re
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
from helpers.contests import write_sweep
from helpers.votes import cast_votes

from t2i.comparison import html_report
from t2i.comparison.grouping import compare
from t2i.comparison.people import people_of
from t2i.comparison.people_report import people_figures, write_people
from t2i.comparison.people_wording import judge_rows, order_rows, people_sentences, preference_rows
from t2i.comparison.results import read_results
from t2i.evaluation.metrics import Metric
from t2i.judging.contestants import read_contest
from t2i.judging.results import people_in
from t2i.runs.judgements import NAME, Judgements

pytestmark = pytest.mark.slow

LIKED = {"snr_gamma=1": 0.0, "snr_gamma=5": 1.5, "snr_gamma=20": -1.5}


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Three judges on three variants of three training seeds: snr_gamma=5 is liked best, 20 least."""
    sweep = write_sweep(tmp_path_factory.mktemp("judged") / "gamma", (1, 5, 20), (0, 1, 2))
    cast_votes(read_contest([sweep]), sweep, LIKED, ["anna", "ben", "cleo", "dan"], 90)
    return sweep


@pytest.fixture
def sweep(judged, tmp_path):
    return shutil.copytree(judged, tmp_path / "moved" / "gamma")


def people(sweep, **options):
    return people_of(compare(read_results([sweep]), **options), [sweep])


def change(sweep, **fields):
    """Change fields of the first vote."""
    lines = (sweep / NAME).read_text().splitlines()
    lines[0] = json.dumps(json.loads(lines[0]) | fields)
    (sweep / NAME).write_text("\n".join(lines) + "\n")


def test_what_people_like_is_found_and_ordered(judged):
    found = people(judged)
    assert [each.variant for each in found.preferences] == ["snr_gamma=5", "snr_gamma=20"]
    assert [each.outcome for each in found.preferences] == ["better", "worse"]
    assert [label for label, _ in found.order] == ["snr_gamma=5", "snr_gamma=1", "snr_gamma=20"]
    assert found.tally.warnings == []
    spoken = [sentence for _, sentence in people_sentences(found)]
    assert spoken[0].startswith("People like snr_gamma=5 more than snr_gamma=1: it won ")
    assert spoken[1].startswith("People like snr_gamma=20 less than snr_gamma=1: it won ")
    assert "Order of liking (Bradley–Terry): snr_gamma=5 > snr_gamma=1 > snr_gamma=20." in spoken[2]
    assert spoken[-1].startswith("4 judges, 3 training seeds, 12 prompts: the intervals cover other judges, too")


def test_votes_are_counted_by_hand(judged):
    """Repeats show how constant a judge is, and count as no votes."""
    votes = [vote for vote in Judgements(judged).read()[0].values() if not vote.repeats]
    wins = total = 0.0
    for vote in votes:
        runs = [vote.left.run.rpartition("_")[0], vote.right.run.rpartition("_")[0]]
        if set(runs) == {"snr_gamma-1", "snr_gamma-5"}:
            total += 1
            wins += {"left": runs[0] == "snr_gamma-5", "right": runs[1] == "snr_gamma-5", "equal": 0.5}[vote.choice]
    found = people(judged)
    (five,) = (each for each in found.preferences if each.variant == "snr_gamma=5")
    assert (five.rate.votes, five.rate.estimate) == (total, pytest.approx(wins / total))
    assert [(row.votes, row.repeats) for row in found.tally.judges] == [(90, 9)] * 4
    assert len(found.ballots.won) == 360


def test_another_baseline_turns_the_rates_around(judged):
    ours, theirs = people(judged), people(judged, baseline="snr_gamma=5")
    there, back = (found.rate(*labels)[0] for found, labels in (
        (ours, ("snr_gamma=5", "snr_gamma=1")), (theirs, ("snr_gamma=1", "snr_gamma=5"))))  # fmt: skip
    assert back.estimate == pytest.approx(1 - there.estimate)
    assert back.p == pytest.approx(there.p)


def test_the_folder_may_move(sweep, judged):
    assert vars(people(sweep).ballots).keys() == vars(people(judged).ballots).keys()
    assert np.array_equal(people(sweep).ballots.won, people(judged).ballots.won)


def test_the_file_is_found_from_the_runs_and_from_a_folder_above(sweep):
    for paths in (sorted(sweep.glob("snr*")), [sweep.parent]):
        assert len(people_of(compare(read_results(paths)), paths).ballots.won) == 360


def test_without_a_file_there_is_nothing(tmp_path):
    assert people(write_sweep(tmp_path, seeds=(0,))) is None


def test_with_a_file_that_holds_no_vote_the_sentence_says_so(tmp_path):
    sweep = write_sweep(tmp_path, seeds=(0,))
    (sweep / NAME).write_text("torn")
    found = people(sweep)
    assert [sentence for _, sentence in people_sentences(found)] == ["There are no votes on the compared runs yet."]
    assert "1 line can't be read" in found.tally.warnings[0]
    assert (preference_rows(found), order_rows(found), judge_rows(found), people_figures(found)) == ([], [], [], {})
    write_people(found, tmp_path)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"battery": "f" * 16}, "on images of another battery"),
        ({"left": {"run": "elsewhere", "step": 200, "sha256": "0"}}, "on runs that are not compared"),
        ({"left": {"run": "snr_gamma-1_seed-0", "step": 100, "sha256": "0"}}, "or on images of another step"),
        ({"left": {"run": "snr_gamma-1_seed-0", "step": 200, "sha256": "0"}}, "on images that were drawn again since"),
    ],
)
def test_a_vote_that_does_not_count_is_named(fields, reason, sweep):
    change(sweep, **fields)
    found = people(sweep)
    assert len(found.ballots.won) == 359
    assert reason in found.tally.warnings[0]
    assert found.tally.warnings[0].endswith(": 1.")


def test_a_vote_on_runs_of_different_seeds_does_not_count(sweep):
    votes = list(Judgements(sweep).read()[0].values())
    seed = votes[0].left.run[-1]
    other = next(vote.right for vote in votes if vote.right.run[-1] != seed and vote.prompt == votes[0].prompt)
    wrong = replace(votes[0], right=other, seed=next(vote.seed for vote in votes if vote.right == other))
    assert wrong.right.run[-1] != seed
    change(sweep, **{key: value for key, value in asdict(wrong).items() if key in ("right",)})
    assert len(people(sweep).ballots.won) == 359


def test_t2i_judge_says_the_same_as_t2i_compare(judged):
    ours, theirs = people(judged), people_in(read_contest([judged]), Judgements(judged.resolve()))
    assert people_sentences(ours) == people_sentences(theirs)


def test_few_votes_say_how_many_more_are_needed(tmp_path):
    sweep = write_sweep(tmp_path, seeds=(0,))
    cast_votes(read_contest([sweep]), sweep, {"snr_gamma=1": 0.0, "snr_gamma=5": 0.4}, ["anna"], 3)
    spoken = " ".join(sentence for _, sentence in people_sentences(people(sweep)))
    assert re.search("about [0-9]+ more votes|The votes would be enough|to say how many votes", spoken)
    assert "the intervals cover this judge only" in spoken
    assert "another training seed could reverse" in spoken


def test_the_file_of_numbers_has_every_pair(judged, tmp_path):
    found = people(judged)
    write_people(found, tmp_path)
    rows = list(csv.DictReader((tmp_path / "people.csv").open()))
    assert len(rows) == 3
    for row in rows:
        rate = found.rate(row["variant"], row["against"])[0]
        assert float(row["win_estimate"]) == pytest.approx(rate.estimate)
        assert float(row["log_odds_low"]) <= float(row["log_odds"]) <= float(row["log_odds_high"])
        assert (float(row["log_odds"]) > 0) == (rate.estimate > 0.5)


def test_the_page_has_a_section_and_figures(judged, tmp_path, monkeypatch):
    """The other figures are not drawn, which takes seconds."""
    others = dict.fromkeys(html_report.FIGURES, "data:image/png;base64,")
    monkeypatch.setattr(html_report, "_figure_uris", lambda *_: others)
    monkeypatch.setattr(html_report, "_figure_names", lambda *_: [])
    hostile = replace(people(judged), labels=["<b>1</b>", "snr_gamma=5", "snr_gamma=20"])
    html_report.write_page(compare(read_results([judged])), Metric.named("val/loss"), tmp_path, people=hostile)
    page = (tmp_path / "comparison.html").read_text()
    assert "What people prefer" in page
    assert "<b>1</b>" not in page
    assert "&lt;b&gt;1&lt;/b&gt;" in page
    for name in ("people", "people_order"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
