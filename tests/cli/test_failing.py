"""What an error leaves on stderr, and the exit code of the process."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import HydraException, InstantiationException

from t2i.cli.failing import run
from t2i.config import ConfigError
from t2i.sweeps.job import SweepError
from t2i.training.signals import Interrupted


def fail(error):
    def command(arguments):
        raise error

    with pytest.raises(SystemExit) as end:
        run(command, ["los=mse"])
    return end.value.code


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("steps=-1 must be at least 0"), 2, "t2i: steps=-1 must be at least 0\n"),
        (FileNotFoundError(2, "No such file or directory", "a.png"), 2, "t2i: a.png: No such file or directory\n"),
        (OSError(28, "No space left on device"), 2,
         "t2i: the output: No space left on device; free some space there, or write elsewhere\n"),
        (HydraException("Hydra's reason"), 2, "t2i: Hydra's reason\n"),
        (SweepError("t2i: 1 of 2 jobs failed; the same command tries them again"), 1,
         "t2i: 1 of 2 jobs failed; the same command tries them again\n"),
        (KeyboardInterrupt(), 130, "\nt2i: interrupted\n"),
        (Interrupted(signal.SIGTERM), 143, "\nt2i: interrupted\n"),
    ],
)  # fmt: skip
def test_what_the_user_can_mend_is_one_line(error, code, message, capsys):
    assert fail(error) == code
    assert capsys.readouterr().err == message


def test_an_interruption_says_how_to_go_on(capsys):
    error = KeyboardInterrupt()
    error.add_note("add run=mine to the command")
    assert fail(error) == 130
    assert capsys.readouterr().err == "\nt2i: interrupted; add run=mine to the command\n"


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("by zero"),
        OSError("of the network"),
        ValueError("of a library"),
        InstantiationException("of a component, as it was built"),
    ],
)
def test_a_fault_of_t2i_shows_where_it_happened_and_asks_for_a_report(error, capsys):
    assert fail(error) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last):")
    assert shown.splitlines()[-1] == (
        f"t2i: {type(error).__name__}: {error}; please report it, with the traceback above and `t2i --version`"
    )


@pytest.mark.parametrize(("returned", "code"), [(None, None), (0, 0), (2, 2)])
def test_a_command_may_return_its_exit_code(returned, code):
    with pytest.raises(SystemExit) as end:
        run(lambda arguments: returned, [])
    assert end.value.code == code


@pytest.mark.parametrize("unbuffered", ["", "-u"])
def test_a_reader_that_has_enough_ends_it_quietly(unbuffered):
    """As in `t2i settings | head -1`."""
    code = f"{sys.executable} {unbuffered} -m t2i settings | head -1; echo ${{PIPESTATUS[0]}}"
    shown = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
    assert shown.stderr == ""
    assert len(shown.stdout.splitlines()) == 2


@pytest.mark.parametrize("stream", [">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_stream_costs_nothing_but_its_lines(stream):
    command = f"{sys.executable} -m t2i settings loss {stream}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, bool(done.stdout)) == (0, "", stream == "2>&-")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_output_that_nothing_takes_is_one_line():
    command = f"{sys.executable} -m t2i settings loss > /dev/full"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "the output: No space left on device" in done.stderr


def test_a_folder_that_was_deleted_is_left_by_the_user(tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert fail(AssertionError("reached")) == 2
    assert capsys.readouterr().err == "t2i: the current folder no longer exists; change to one that does\n"
