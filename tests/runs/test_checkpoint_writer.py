"""Checkpoints in the background: the promises of those in the foreground."""

import json
import logging
import threading
from contextlib import contextmanager

import pytest
import torch

from t2i.runs import checkpoint_writer, checkpoints
from t2i.runs.checkpoint_writer import CheckpointWriter
from t2i.runs.checkpoints import NotSaved
from t2i.runs.host_copies import BLOCK, HostCopies


class Weights:
    """A part whose tensor counts the steps."""

    def __init__(self):
        self.tensor = torch.zeros(3)

    def state_dict(self):
        return {"weight": self.tensor}

    def load_state_dict(self, state):
        self.tensor.copy_(state["weight"])


@pytest.fixture
def slow(monkeypatch):
    """Writing waits until the event is set."""
    go_on, write = threading.Event(), checkpoints._write
    monkeypatch.setattr(checkpoints, "_write", lambda *args: (go_on.wait(10), write(*args)))
    return go_on


def save(writer, step, part, done=lambda: None):
    writer.save(step, {"denoiser": part}, losses={}, vouched={}, done=done)


def test_what_is_written_is_what_was_there_when_it_was_asked_for(tmp_path, slow):
    part, found, ends = Weights(), Weights(), []
    with CheckpointWriter(tmp_path, keep=2, keep_at=[], background=True) as writer:
        save(writer, 1, part, done=lambda: ends.append(checkpoints.newest(tmp_path)))
        part.tensor += 1  # the run goes on
        assert checkpoints.newest(tmp_path) is None
        assert not ends
        slow.set()
    assert ends == [tmp_path / "step-000001"]
    assert checkpoints.load(ends[0], {"denoiser": found}) == 1
    assert found.tensor.sum() == 0


def test_the_next_one_waits_and_none_is_lost(tmp_path, slow):
    part = Weights()
    with CheckpointWriter(tmp_path, keep="all", keep_at=[], background=True) as writer:
        save(writer, 1, part)
        threading.Timer(0.05, slow.set).start()
        part.tensor += 1
        save(writer, 2, part)
        assert checkpoints.newest(tmp_path) is not None
    for step in (1, 2):
        checkpoints.load(tmp_path / f"step-{step:06}", {"denoiser": part})
        assert part.tensor.tolist() == [step - 1.0] * 3


def failing(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "_write", full)


def run_into_a_full_disk(folder, monkeypatch, then):
    with CheckpointWriter(folder, keep=2, keep_at=[], background=True) as writer:
        save(writer, 1, Weights())
        writer.wait()
        failing(monkeypatch)
        save(writer, 2, Weights())
        then(writer)


def fail(writer):
    raise ZeroDivisionError


@pytest.mark.parametrize(
    "then",
    [
        lambda writer: (writer.thread.join(), writer.check()),
        lambda writer: writer.wait(),
        lambda writer: save(writer, 3, Weights()),
        lambda writer: None,
    ],
    ids=["check", "wait", "save", "exit"],
)
def test_an_error_of_the_writer_ends_the_run_and_leaves_the_checkpoint_before(tmp_path, monkeypatch, then):
    message = r"step 2 could not be written .*No space left.*continues from step-000001"
    with pytest.raises(NotSaved, match=message):
        run_into_a_full_disk(tmp_path, monkeypatch, then)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_an_error_of_the_run_is_not_hidden_by_one_of_the_writer(tmp_path, monkeypatch, caplog):
    with pytest.raises(ZeroDivisionError):
        run_into_a_full_disk(tmp_path, monkeypatch, fail)
    assert "step 2 could not be written" in caplog.text


@pytest.mark.parametrize("reason", ["asked", "alloc"])
def test_without_room_for_copies_it_writes_in_the_foreground(tmp_path, monkeypatch, caplog, reason):
    if reason == "asked":
        monkeypatch.setattr(checkpoint_writer, "available_memory", lambda: 10)
    else:
        monkeypatch.setattr(torch.Tensor, "clone", lambda *_: torch.empty(2**60, dtype=torch.uint8))
    with CheckpointWriter(tmp_path, keep=2, keep_at=[], background=True) as writer:
        save(writer, 1, Weights())
        assert writer.thread is None
        assert checkpoints.newest(tmp_path).name == "step-000001"
        save(writer, 2, Weights())
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    assert "save_in_background: the host's memory has no room" in caplog.text


def test_a_process_that_does_not_write_takes_part_in_gathering(tmp_path):
    class Counted(Weights):
        calls = 0

        def state_dict(self):
            self.calls += 1
            return super().state_dict()

    part = Counted()
    with CheckpointWriter(tmp_path / "run", keep=2, keep_at=[], background=True, writes=False) as writer:
        save(writer, 1, part)
    assert part.calls == 1
    assert not (tmp_path / "run").exists()


def test_no_signal_ends_the_run_while_it_copies_or_waits(tmp_path):
    inside = []

    @contextmanager
    def unbroken():
        inside.append("begin")
        yield
        inside.append("end")

    with CheckpointWriter(tmp_path, 2, [], background=True, unbroken=unbroken) as writer:
        save(writer, 1, Weights())
    assert inside == ["begin", "end"] * 2


def test_copies_keep_values_types_and_the_order_in_memory(monkeypatch, tmp_path):
    """The memory for what comes from a GPU, tried with tensors of the CPU."""
    monkeypatch.setattr("t2i.runs.host_copies.BLOCK", 4096)
    copies, random = HostCopies(), torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(2, 3, 4, 5, generator=random).to(memory_format=torch.channels_last),
        torch.randn(4, 6, generator=random)[:, ::2],
        torch.arange(3000),  # larger than a block
        torch.randn(40, 20, generator=random).bfloat16(),
        torch.tensor(7),
        torch.ones(1).expand(5),
    ]
    for _ in range(2):
        copies.reuse()
        found = [copies._room(tensor).copy_(tensor) for tensor in tensors]
        for tensor, copy in zip(tensors, found, strict=True):
            assert torch.equal(tensor, copy)
            assert tensor.dtype == copy.dtype
        assert found[0].stride() == tensors[0].stride()
        torch.save(found, tmp_path / "saved.pt")
        assert (tmp_path / "saved.pt").stat().st_size < sum(copy.nbytes for copy in found) + 5000
        places = [(copy.data_ptr(), copy.data_ptr() + copy.nbytes) for copy in found if copy.numel()]
        assert all(end <= start for (_, end), (start, _) in zip(sorted(places), sorted(places)[1:], strict=False))
    assert len(copies.blocks) == 3  # made once
    assert BLOCK % 4096 == 0


def test_copies_of_states_are_apart_from_them():
    state = {"state": {0: {"step": 3, "m": torch.ones(2)}}, "groups": [{"betas": (0.9, 0.99), "params": [0]}]}
    copy = HostCopies().of(state, clone=True)
    state["state"][0]["m"] += 1
    state["groups"][0]["params"].append(1)
    assert json.dumps(copy, default=lambda tensor: tensor.tolist()) == json.dumps(
        {"state": {"0": {"step": 3, "m": [1.0, 1.0]}}, "groups": [{"betas": [0.9, 0.99], "params": [0]}]}
    )


class Told(checkpoints.Processes):
    """A process that is told what the main one has chosen, and that can't load some steps."""

    is_main = False

    def __init__(self, choices):
        self.choices = iter(choices)
        self.answers = []

    def told(self, value):
        assert value is None
        return next(self.choices)

    def all_agree(self, answer):
        self.answers.append(answer)
        return answer


def test_every_process_loads_what_the_main_one_chose(tmp_path):
    part = Weights()
    chosen = [(checkpoints.save(tmp_path, step, {"denoiser": part}, keep="all"), []) for step in (5, 10)]
    processes = Told([chosen[0]])
    assert checkpoints.resume(tmp_path, {"denoiser": part}, processes) == 5
    (chosen[1][0] / "denoiser.safetensors").write_bytes(b"")
    processes = Told([chosen[1], chosen[0]])
    assert checkpoints.resume(tmp_path, {"denoiser": part}, processes) == 5
    assert processes.answers == [False, True]
    assert checkpoints.resume(tmp_path, {"denoiser": part}, Told([None])) is None
