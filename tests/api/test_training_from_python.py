"""`t2i.train(...)` in a process of its own: called again, refused with an exception, interrupted, orphaned."""

import signal
import subprocess
import sys
import time

import pytest

import t2i

SCRIPT = "import sys, t2i; t2i.train(*sys.argv[1:])"


@pytest.fixture
def settings(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return [*small, "tracker=none", "validation.items=4"]


@pytest.mark.slow
def test_what_the_command_refuses_is_an_exception_with_its_words(settings, capsys):
    with pytest.raises(t2i.ConfigError) as raised:
        t2i.train(*settings, "stesp=1")
    assert "did you mean steps?" in str(raised.value)
    assert f"t2i: {raised.value}" in capsys.readouterr().err
    command = subprocess.run(
        [sys.executable, "-m", "t2i.train", *settings, "stesp=1"], capture_output=True, text=True, check=False
    )
    assert command.stderr.strip() == f"t2i: {raised.value}"


@pytest.mark.slow
def test_a_run_is_returned_and_the_same_call_returns_it_again(settings, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as Jupyter does
    run = t2i.train(*settings, "steps=2", "sample_every=2")
    shown = capsys.readouterr().out
    assert "step 2/2" in shown
    assert "\x1b" not in shown
    assert run.folder.parts[:2] == ("multirun", "animals_and_fruit-minsnr")
    assert list(run.metrics.index) == [0, 1, 2]
    assert run.samples.steps == [0, 2]
    again = t2i.train(*settings, "steps=2", "sample_every=2", f"run={run.folder.relative_to('multirun')}", show=False)
    assert (again.folder, again.result, capsys.readouterr().out) == (run.folder, run.result, "")


def begun(arguments, folder):
    """A process that trains by `t2i.train`, and has made its first steps."""
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (folder / "metrics.jsonl").is_file() or '"step": 2,' not in (folder / "metrics.jsonl").read_text():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return process


@pytest.mark.slow
def test_an_interrupted_run_can_be_gone_on_with(settings, tmp_path):
    """Ctrl-C reaches the process that called t2i.train: there it is an exception, and the run writes a checkpoint."""
    arguments, folder = (
        [*settings, "run=mine", "log_every=1", "save_every=0", "sample_every=0"],
        tmp_path / "multirun/mine",
    )
    process = begun([*arguments, "steps=100000"], folder)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=200)[1]
    assert "KeyboardInterrupt: the run was interrupted" in errors
    assert 't2i.train(..., "run=mine") goes on from its last checkpoint' in errors
    run = t2i.open_run("mine")
    assert run.state == "interrupted"
    assert [int(path.name[-6:]) for path in (folder / "checkpoints").iterdir()] == [run.metrics.index.max()]


@pytest.mark.slow
def test_a_run_ends_in_good_order_if_the_notebook_dies(settings, tmp_path):
    folder = tmp_path / "multirun" / "mine"
    process = begun([*settings, "run=mine", "log_every=1", "sample_every=0", "steps=100000"], folder)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 200
    while t2i.open_run("mine").state == "running":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert t2i.open_run("mine").state == "interrupted"
