import os
import signal
import time

import pytest

from t2i.training.signals import SIGNALS, Interrupted, Stop


def send(signum):
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_ends_the_run(signum):
    with pytest.raises(Interrupted, match=signal.Signals(signum).name), Stop(None) as stop, stop.patiently():  # noqa: PT012
        assert not stop()
        send(signum)
        assert stop()
        send(signum)


def test_outside_of_training_the_first_ends_it():
    with pytest.raises(Interrupted) as ended, Stop(None):
        send(signal.SIGTERM)
    assert ended.value.signum == signal.SIGTERM


def test_handlers_are_put_back():
    before = [signal.getsignal(each) for each in SIGNALS]
    with Stop(None):
        pass
    assert before == [signal.getsignal(each) for each in SIGNALS]


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_scheduler_that_queues_the_job_again_gets_its_turn_when_the_run_is_saved(signum):
    heard = []
    before = signal.signal(signum, lambda signum, frame: heard.append(signum))
    try:
        with pytest.raises(Interrupted), Stop(None) as stop, stop.patiently():  # noqa: PT012
            send(signum)
            assert stop.signum == signum
            assert heard == []
            raise Interrupted(stop.signum)
        assert heard == [signum]
    finally:
        signal.signal(signum, before)


@pytest.mark.parametrize("warning", ["SIGUSR1", "SIGUSR2", "SIGTERM"])
def test_a_warning_of_slurm_may_come_again_and_only_ctrl_c_ends_the_run_at_once(monkeypatch, warning):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.raises(Interrupted) as ended, Stop(None) as stop, stop.patiently():  # noqa: PT012
        for signum in (warning, warning, "SIGUSR2", "SIGTERM"):
            send(getattr(signal, signum))
        assert stop()
        send(signal.SIGINT)
    assert ended.value.signum == signal.SIGINT


def test_it_stops_as_if_warned_before_slurm_ends_the_job(capfd):
    stop = Stop(None, ends_at=time.time() + 1000)
    assert not stop()
    stop = Stop(None, ends_at=time.time() + 1)  # a tenth of it is kept free
    time.sleep(0.4)  # the longest step so far
    assert stop()
    assert stop.signum == signal.SIGUSR2
    assert "the time of this job is almost up" in capfd.readouterr().err
    assert not Stop(None, ends_at=time.time() - 1)(), "of a job that has ended: an old variable of the environment"


def test_it_stops_before_a_step_that_would_end_too_late():
    stop = Stop(max_hours=1 / 3600)
    assert not stop()
    time.sleep(0.4)  # the longest step so far: two more don't fit into the second
    assert stop()


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGINT])
def test_what_nohup_and_a_background_job_ignore_stays_ignored(signum):
    before = signal.signal(signum, signal.SIG_IGN)
    try:
        with Stop(None) as stop, stop.patiently():
            send(signum)
            assert not stop()
        assert signal.getsignal(signum) is signal.SIG_IGN
    finally:
        signal.signal(signum, before)


def test_the_first_signal_is_answered_at_once_and_only_where_told_to(capfd):
    with pytest.raises(Interrupted), Stop(None) as stop, stop.patiently():  # noqa: PT012
        send(signal.SIGTERM)
        assert "SIGTERM: the run ends after this step, and is saved" in capfd.readouterr().err
        send(signal.SIGTERM)
    with pytest.raises(Interrupted), Stop(None, answers=False) as stop, stop.patiently():  # noqa: PT012
        send(signal.SIGTERM)
        send(signal.SIGTERM)
    assert capfd.readouterr().err == ""


def test_a_second_signal_waits_for_the_checkpoint(capfd):
    written = []
    with pytest.raises(Interrupted), Stop(None) as stop, stop.patiently():  # noqa: PT012
        send(signal.SIGTERM)
        with stop.unbroken():
            send(signal.SIGTERM)
            send(signal.SIGTERM)
            written.append("all of it")
        written.append("more")
    assert written == ["all of it"]
    assert "the checkpoint is being written" in capfd.readouterr().err


def test_one_signal_while_a_checkpoint_is_written_ends_the_run_after_its_step():
    with Stop(None) as stop, stop.patiently():
        with stop.unbroken():
            send(signal.SIGTERM)
        assert stop()
