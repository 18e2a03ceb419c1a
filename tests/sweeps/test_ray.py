"""Sweeps and races on a Ray cluster of two nodes: a node is lost, and Ctrl-C."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from t2i.sweeps.process import Losses

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 't2i[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.long]
SWEEP = ("hydra/launcher=ray", "hydra.launcher.address=auto", "seed=0,1", "steps=40", "save_every=2")
RACE = ("hydra/launcher=racing", "hydra.launcher.rounds=[0.5]", "optimizer.lr=1e-4,1e-2", "seed=0,1", "steps=16")
RACE = (*RACE, "validate_every=2", "validation.items=16", "save_every=2")
ON_RAY = ("hydra.launcher.via=ray", "hydra.launcher.via_options={address: auto}")


@pytest.fixture
def cluster(monkeypatch) -> Iterator:
    """A head with one core, and the means to add nodes."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster
    cluster.shutdown()


def steps(sweep: Path) -> list[int]:
    files = [file.read_text().splitlines() for file in sweep.glob("*/metrics.jsonl")]
    return [json.loads(lines[-1])["step"] for lines in files if lines]


def states(sweep: Path) -> set[str]:
    return {json.loads(file.read_text())["state"] for file in sweep.glob("*/run.json")}


def until(holds: Callable[[], bool], process) -> None:
    while process.poll() is None and not holds():
        time.sleep(0.2)
    assert process.poll() is None, process.communicate()[0]


def decisions(sweep: Path) -> dict:
    content = json.loads((sweep / "race.json").read_text())
    return {key: value for key, value in content.items() if key not in ("hours", "summary")}


def test_a_race_on_two_nodes_one_of_which_dies_takes_the_same_decisions(command, tmp_path, cluster):
    here = command("sweep=here", *RACE)
    output = here.communicate()[0]
    assert here.returncode == 0, output
    node = cluster.add_node(num_cpus=1)
    there = command("sweep=there", *RACE, *ON_RAY)
    until(lambda: sum(step > 0 for step in steps(tmp_path / "multirun/there")) == 2, there)
    cluster.remove_node(node, allow_graceful=False)
    output = there.communicate()[0]
    assert there.returncode == 0, output
    assert "its node was lost" in output
    assert decisions(tmp_path / "multirun/there") == decisions(tmp_path / "multirun/here")


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_the_same_command_goes_on_after_the_sweep_was_ended(command, tmp_path, cluster, ending):
    cluster.add_node(num_cpus=1)
    sweep = command("sweep=s", *SWEEP)
    until(lambda: sum(step > 2 for step in steps(tmp_path / "multirun/s")) == 2, sweep)
    sweep.send_signal(ending)
    output = sweep.communicate()[0]
    if ending == signal.SIGINT:
        assert sweep.returncode == 130, output
        assert states(tmp_path / "multirun/s") == {"interrupted"}
    again = command("sweep=s", *SWEEP)
    output = again.communicate()[0]
    assert again.returncode == 0, output
    assert states(tmp_path / "multirun/s") == {"finished"}
    alone = command("sweep=alone", *(each for each in SWEEP if "launcher" not in each))
    output = alone.communicate()[0]
    assert alone.returncode == 0, output
    for run in (tmp_path / "multirun/alone").glob("seed-*"):
        expected, got = (
            load_file(folder / "model/unet/diffusion_pytorch_model.safetensors")
            for folder in (run, tmp_path / "multirun/s" / run.name)
        )
        assert all(expected[key].equal(got[key]) for key in expected)


def test_what_no_node_has_is_refused_with_what_they_have(command, cluster):
    sweep = command("sweep=s", *SWEEP, "hydra.launcher.num_gpus=2")
    output = sweep.communicate()[0]
    assert sweep.returncode == 1
    assert "no node of the Ray cluster has what a job needs (CPU 1, GPU 2); the nodes have CPU 1" in output
    assert "Traceback" not in output


def test_a_job_that_gets_further_between_losses_is_not_given_up():
    losses = Losses(allowed=1)
    assert [losses.again(step) for step in (4, 8, 8, 12, 12, 12)] == [True, True, False, True, False, False]
