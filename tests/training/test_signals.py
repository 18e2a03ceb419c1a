import os
import signal
import time

import pytest

from t2i.training.signals import Interrupted, Stop


def send(signum):
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
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
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with Stop(None):
        pass
    assert before == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]


def test_a_scheduler_that_queues_the_job_again_gets_its_turn_when_the_run_is_saved():
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda signum, frame: heard.append(signum))
    try:
        with pytest.raises(Interrupted), Stop(None) as stop, stop.patiently():  # noqa: PT012
            send(signal.SIGUSR1)
            assert stop.signum == signal.SIGUSR1
            assert heard == []
            raise Interrupted(stop.signum)
        assert heard == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


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
