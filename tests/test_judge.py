"""`t2i judge`, as it is typed."""

import os
import signal
import socket
import subprocess
import sys

import pytest
from helpers.contests import write_sweep
from helpers.votes import cast_votes

from t2i import compare, judge
from t2i.config import ConfigError
from t2i.judging.contestants import read_contest


@pytest.fixture
def sweep(tmp_path):
    sweep = write_sweep(tmp_path, seeds=(0,))
    cast_votes(read_contest([sweep]), sweep, {"snr_gamma=1": 0.0, "snr_gamma=5": 2.0}, ["anna", "ben", "[red]"], 12)
    return sweep


@pytest.mark.parametrize("columns", [80, 160])
def test_results_are_printed_without_a_server(columns, sweep, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    judge.main([str(sweep), "--results"])
    shown = capsys.readouterr().out
    assert "People like snr_gamma=5 more than snr_gamma=1" in " ".join(shown.split())
    assert "[red]" in shown
    assert max(map(len, shown.splitlines())) <= columns


def test_compare_shows_them(sweep, capsys, monkeypatch):
    monkeypatch.setattr(compare, "write", lambda *_: None)
    monkeypatch.setenv("COLUMNS", "160")
    compare.main([str(sweep)])
    shown = capsys.readouterr().out
    assert "What people prefer, against snr_gamma=1" in shown
    assert "People like snr_gamma=5 more than snr_gamma=1" in shown


def test_a_port_that_is_taken_is_named(sweep):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"^--port {port} is in use; choose another one"):
            judge.main([str(sweep), "--port", str(port)])
    with pytest.raises(ConfigError, match=r"^--port 70000 can't be used"):
        judge.main([str(sweep), "--port", "70000"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "a" * 61], "a judge's name has 1 to 60 characters"),
        (["--step", "7"], "--step 7: no run was validated there"),
        (["--by", "gamma"], "--by gamma is in no run's configuration"),
        (["--pairs", "0"], "argument --pairs: 0 must be a whole number of at least 1"),
    ],
)
def test_mistakes_end_in_a_clear_message(arguments, message, sweep):
    with pytest.raises(ConfigError) as error:
        judge.main([str(sweep), *arguments])
    assert str(error.value).startswith(message)


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=f"^{tmp_path} holds no run"):
        judge.main([str(tmp_path)])


@pytest.mark.slow
def test_ctrl_c_ends_it_with_the_results(sweep):
    command = [sys.executable, "-m", "t2i", "judge", str(sweep), "--name", "anna"]
    environment = os.environ | {"COLUMNS": "160"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    for line in process.stdout:
        if line.startswith("Open http://127.0.0.1:"):
            break
    process.send_signal(signal.SIGINT)
    shown, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert "People like snr_gamma=5 more" in shown
