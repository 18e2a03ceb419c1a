"""Two nodes under torchrun, here two agents on one machine: one folder, restarts, and the end of a process."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from helpers.launch import OPTIONS, WITH_HELPERS
from helpers.runs import free_port
from safetensors.torch import load_file

from t2i.config import ConfigError
from t2i.distributed import launch
from t2i.distributed.messages import Connection, Listener, introduce
from t2i.distributed.peers import PeerFailed, Peers

TORCHRUN = Path(sys.executable).parent / "torchrun"


@pytest.fixture
def on_two_nodes(small, tmp_path):
    """Train on two nodes with a process each, where process 1 does a deed at the fourth step; returns their output."""

    def train(flags: list[str], *settings: str, deed: str | None = None) -> list[tuple[int, str]]:
        folder = tmp_path / (deed or "none")
        folder.mkdir(exist_ok=True)
        if deed:
            (folder / "0.1").write_text(deed)
        program = ["-m", "t2i.train", "--config-dir", str(OPTIONS), "loss=saboteur", f"loss.folder={folder}", *small]
        program += ["micro_batch_size=4", "allowed_targets=[saboteur]", "sample_every=0", "threads=1", *settings]
        variables = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": WITH_HELPERS}
        port, agents = free_port(), []
        for node in range(2):
            own = [flag.format(node=node, port=port) for flag in flags]
            command = [str(TORCHRUN), "--nnodes=2", "--nproc-per-node=1", *own, *program]
            output = open(tmp_path / f"node-{node}", "w+")  # noqa: SIM115
            pipes = {"stdout": output, "stderr": subprocess.STDOUT}
            agents.append((subprocess.Popen(command, cwd=tmp_path, env=os.environ | variables, **pipes), output))
        ended = []
        for agent, output in agents:
            ended.append((agent.wait(timeout=300), Path(output.name).read_text()))
            output.close()
        return ended

    return train


ELASTIC = ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:{port}"]
STATIC = ["--node-rank={node}", "--master-addr=127.0.0.1", "--master-port={port}"]


def the_run(folder: Path) -> Path:
    """The only run below multirun/, and no other folder."""
    (group,) = (folder / "multirun").iterdir()
    (run,) = group.iterdir()
    return run


def info(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


@pytest.mark.slow
@pytest.mark.skipif(torch.accelerator.is_available(), reason="where there is a GPU, it is used")
def test_processes_without_a_gpu_train_together(small, tmp_path):
    """torchrun does not say that they are to use the CPU."""
    program = ["-m", "t2i.train", "run=together", *small, "sample_every=0", "threads=1", "steps=2", "stop_at=1"]
    program.append("micro_batch_size=4")
    variables = {key: value for key, value in os.environ.items() if key != "ACCELERATE_USE_CPU"}
    done = subprocess.run(
        [str(TORCHRUN), "--nproc-per-node=2", *program], cwd=tmp_path, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    info = json.loads((tmp_path / "multirun/together/run.json").read_text())
    assert (info["num_processes"], info["state"]) == (2, "paused")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("rendezvous", [ELASTIC, STATIC], ids=["elastic", "static"])
def test_a_restart_resumes_in_the_same_folder_to_the_same_bits(on_two_nodes, tmp_path, rendezvous):
    runs = []
    for deed in (None, "kill"):
        ended = on_two_nodes([*rendezvous, "--max-restarts=1"], "save_every=2", deed=deed)
        assert [code for code, _ in ended] == [0, 0], ended
        runs.append(the_run(tmp_path).rename(tmp_path / f"run-{deed}"))
        assert info(runs[-1])["state"] == "finished"
        (tmp_path / "multirun").rename(tmp_path / f"multirun-{deed}")
    assert "goes on from the checkpoint of step 2 of 10" in "".join(output for _, output in ended)
    expected, resumed = (load_file(run / "model" / "unet" / "diffusion_pytorch_model.safetensors") for run in runs)
    assert all(torch.equal(expected[key], resumed[key]) for key in expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        ("raise", "failed: RuntimeError: the fourth step failed"),
        pytest.param("kill", "has died without a word", marks=pytest.mark.long),
        pytest.param("exit", "failed: exit code 3", marks=pytest.mark.long),
    ],
)
def test_what_ends_one_process_is_what_all_report(on_two_nodes, tmp_path, deed, reason):
    ended = on_two_nodes(ELASTIC, "run=named", deed=deed)
    assert all(code != 0 for code, _ in ended)
    host = socket.gethostname()
    said = f"process 1 of 2 on {host} {reason}"
    assert said in info(tmp_path / "multirun" / "named")["error"]
    assert sum(f"t2i: {said}" in output for _, output in ended) == 1  # by the other one
    assert not any("gloo" in output.lower() for _, output in ended)


@pytest.fixture
def connected():
    """Makes as many peers in this process, connected as `launch.connect` connects processes."""
    made: list[Peers] = []

    def connect(size: int) -> list[Peers]:
        listener, members = Listener(), {}

        def join(rank: int) -> None:
            members[rank] = introduce("127.0.0.1", listener.port, listener.secret, rank, f"host-{rank}")

        joining = [threading.Thread(target=join, args=(rank,)) for rank in range(1, size)]
        for thread in joining:
            thread.start()
        accepted = [found[0] for _ in joining if (found := listener.accept(timeout=5)) is not None]
        for thread in joining:
            thread.join()
        listener.close()
        made.append(Peers(0, size, tuple(accepted)))
        made.extend(Peers(rank, size, (members[rank],)) for rank in range(1, size))
        return made[-size:]

    yield connect
    for each in made:
        each.over = True  # so that the test's own process is not ended


def heard(peers: Peers) -> str | None:
    deadline = time.monotonic() + 2
    while peers.failure is None and time.monotonic() < deadline:
        time.sleep(0.005)
    return peers.failure


def test_all_processes_take_the_name_that_the_first_proposes(connected):
    peers = connected(3)
    assert [each.agree(lambda rank=rank: f"name-{rank}") for rank, each in enumerate(peers)] == ["name-0"] * 3


def test_an_error_of_one_process_reaches_all_others_with_its_name(connected):
    peers = connected(3)
    with pytest.raises(ValueError, match="disk"), peers[2].reporting():
        raise ValueError("the disk\nis gone")
    assert [heard(each) for each in peers[:2]] == [
        f"process 2 of 3 on {socket.gethostname()} failed: ValueError: the disk is gone"
    ] * 2
    with pytest.raises(PeerFailed, match="the disk is gone; this process ends with it"), peers[0].blamed():
        raise RuntimeError("Connection closed by peer")


def test_the_end_of_a_process_without_a_word_is_noticed(connected):
    peers = connected(3)
    peers[1].connections[0].socket.shutdown(socket.SHUT_RDWR)
    assert "process 1 of 3 on host-1 has died without a word" in str(heard(peers[0]))
    assert "process 1 of 3 on host-1 has died without a word" in str(heard(peers[2]))


def test_messages_that_arrive_together_are_all_read():
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    one.sendall(b'{"first": 1}\n{"second": 2}\n{"thi')
    connection = Connection(other, 1, "host")
    assert connection.read_one(timeout=1) == {"first": 1}
    assert connection.read() == [{"second": 2}]
    one.sendall(b'rd": 3}\n')
    assert connection.read() == [{"third": 3}]
    one.sendall(b"no message\n")
    assert connection.read() is None


def test_processes_that_are_done_are_not_missed(connected):
    peers = connected(2)
    for each in reversed(peers):
        with each.reporting():
            pass
        with suppress(OSError):  # the other one has hung up
            each.connections[0].socket.shutdown(socket.SHUT_RDWR)
    time.sleep(0.1)
    assert [each.failure for each in peers] == [None, None]


def test_an_error_of_its_own_stays_what_it_is(connected, monkeypatch):
    monkeypatch.setattr("t2i.distributed.peers.NEWS", 0.01)
    (one, _) = connected(2)
    with pytest.raises(RuntimeError, match="shapes"), one.blamed():
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize(
    "said", [b'{"secret": "guessed", "rank": 1, "host": "elsewhere"}', b"[]", b"3", b"[" * 90_000, b"GET / HTTP/1.1"]
)
def test_strangers_at_the_port_are_sent_away(said):
    listener = Listener()
    stranger = socket.create_connection(("127.0.0.1", listener.port))
    stranger.sendall(said + b"\n")
    assert listener.accept(timeout=2) is None
    with suppress(ConnectionResetError):
        assert stranger.recv(1) == b""


def test_a_stranger_that_dribbles_does_not_keep_the_others_waiting():
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    stop = threading.Event()

    def dribble():
        while not stop.wait(0.02):
            one.send(b" ")

    threading.Thread(target=dribble, daemon=True).start()
    began = time.monotonic()
    with pytest.raises(OSError, match="not a process of this run"):
        Connection(other, 1, "host").read_one(timeout=0.2)
    stop.set()
    assert time.monotonic() - began < 2


def test_restarted_processes_find_the_run_that_their_agents_began(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, begun_by in (("earlier", ["a", "b"]), ("later", ["c"])):
        (run := tmp_path / "multirun" / "group" / name).mkdir(parents=True)
        (run / "run.json").write_text(json.dumps({"launchers": begun_by}))
    for agents, expected in ((("b", "x"), "group/earlier"), (("c",), "group/later")):
        monkeypatch.setattr(launch, "_peers", Peers(launchers=agents))
        assert launch.stamp("group") == expected
    monkeypatch.setattr(launch, "_peers", Peers(launchers=("x",)))
    assert launch.stamp("group").startswith("group/20")


def test_processes_that_nobody_can_find_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ConfigError, match=r"WORLD_SIZE=2, but MASTER_ADDR and MASTER_PORT .*torchrun"):
        launch.connect()
