"""judgements.jsonl: what is appended is read again, whatever happens to the file and to the process."""

import errno
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2i.config import ConfigError
from t2i.runs import judgements as module
from t2i.runs.judgements import NAME, Judgements, Shown, Vote

VOTE = Vote(
    id="a",
    judge="anna",
    time="2026-01-01T00:00:00+00:00",
    battery="0123",
    prompt=3,
    text="a rëd apple\u2028",
    seed=0,
    left=Shown("gamma-1", 200, "11"),
    right=Shown("gamma-5", 200, "22"),
    choice="left",
)


def test_a_vote_is_read_as_it_was_cast(tmp_path):
    Judgements(tmp_path).add(VOTE)
    assert Judgements(tmp_path).read() == ({("anna", "a"): VOTE}, 0)


def test_the_first_vote_of_a_judge_on_a_pair_counts(tmp_path):
    judgements = Judgements(tmp_path)
    for vote in (VOTE, VOTE, replace(VOTE, choice="right"), replace(VOTE, judge="ben")):
        judgements.add(vote)
    assert [vote.choice for vote in judgements.read()[0].values()] == ["left", "left"]
    assert (tmp_path / NAME).read_text().count("\n") == 2


def test_a_vote_can_be_taken_back_and_cast_again(tmp_path):
    judgements = Judgements(tmp_path)
    judgements.add(VOTE)
    judgements.take_back("anna", "a")
    assert judgements.read() == ({}, 0)
    judgements.take_back("anna", "a")
    judgements.add(replace(VOTE, choice="equal"))
    assert judgements.read()[0]["anna", "a"].choice == "equal"
    assert (tmp_path / NAME).read_text().count("\n") == 3


@pytest.mark.parametrize("end", range(1, 60, 7))
def test_a_torn_line_costs_itself_only(end, tmp_path):
    judgements = Judgements(tmp_path)
    judgements.add(VOTE)
    with open(tmp_path / NAME, "a") as file:
        file.write(json.dumps({"id": "b", "judge": "anna"})[:end])
    assert judgements.read() == ({("anna", "a"): VOTE}, 1)
    judgements.add(replace(VOTE, id="c"))
    assert [identity for _, identity in judgements.read()[0]] == ["a", "c"]


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)))
def test_a_field_of_any_other_kind_makes_a_line_damaged_and_nothing_else(value):
    line = {**vars(VOTE), "left": vars(VOTE.left), "right": vars(VOTE.right)}
    for key in line:
        votes, damaged = module._parse(json.dumps(line | {key: value}))
        assert len(votes) + damaged == 1
        if not isinstance(value, str | int):
            assert damaged == 1


def test_threads_lose_nothing(tmp_path):
    """Each with a server of its own, as several processes have, and all submit each vote twice."""
    votes = [replace(VOTE, id=str(number % 40)) for number in range(80)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda vote: Judgements(tmp_path).add(vote), votes))
    assert (tmp_path / NAME).read_text().count("\n") == 40
    assert Judgements(tmp_path).read()[1] == 0


@pytest.mark.slow
def test_processes_lose_nothing(tmp_path):
    code = (
        "import sys; from pathlib import Path; from t2i.runs.judgements import *\n"
        "for i in range(40):\n"
        "    Judgements(Path(sys.argv[1])).add(Vote(str(i), sys.argv[2], now(), 'x', 0, 'y' * 5000, 0,"
        " Shown('a', 1, '0'), Shown('b', 1, '0'), 'left'))\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), judge]) for judge in "abc"]
    assert [process.wait() for process in processes] == [0, 0, 0]
    votes, damaged = Judgements(tmp_path).read()
    assert (len(votes), damaged) == (120, 0)


def test_a_full_disk_is_named_and_tears_nothing(tmp_path, monkeypatch):
    judgements = Judgements(tmp_path)
    judgements.add(VOTE)

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=NAME):
        judgements.add(replace(VOTE, id="b"))
    monkeypatch.undo()
    assert judgements.read() == ({("anna", "a"): VOTE}, 0)


@pytest.mark.parametrize("name", [NAME, ".judgements.lock"])
def test_no_link_leads_to_a_file_elsewhere(name, tmp_path):
    (tmp_path / "elsewhere").write_text("mine\n")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="outside of"):
        Judgements(tmp_path / "sweep").add(VOTE)
    assert (tmp_path / "elsewhere").read_text() == "mine\n"


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / NAME)
    assert Judgements(tmp_path).read() == ({}, 0)
    with pytest.raises(ConfigError, match="neither a file nor a folder"):
        Judgements(tmp_path).add(VOTE)


@pytest.mark.parametrize(
    "changes",
    [
        *({"prompt": 10**25}, {"prompt": 10**400}, {"seed": -1}, {"seed": 10**400}),
        *({"left": {"run": "\ud800", "step": 1, "sha256": "1"}}, {"right": {"run": "a", "step": -1, "sha256": "1"}}),
    ],
    ids=str,
)
def test_numbers_and_names_that_no_vote_has_make_a_line_damaged(changes):
    line = {**vars(VOTE), "left": vars(VOTE.left), "right": vars(VOTE.right)}
    assert module._parse(json.dumps(line | changes)) == ({}, 1)
