"""Sweeps on a Slurm cluster of two nodes on this machine: every kind of warning, kills, and the same command again."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import slurm_cluster
from safetensors.torch import load_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(slurm_cluster.missing()),
        reason=f"{', '.join(slurm_cluster.missing())} missing: apt-get install slurmctld slurmd slurm-client",
    ),
]
ON_SLURM = ("hydra/launcher=slurm", "hydra.launcher.gpus_per_node=0", "hydra.launcher.cpus_per_task=1")
ON_SLURM = (*ON_SLURM, "hydra.launcher.mem_gb=1", "hydra.launcher.poll_s=1")
STEPS = 24
# What each job does to itself at every fourth step since it has begun, or begun again.
DEEDS = {
    0: [
        "kill -9 $(cat launcher.pid)",  # while two jobs run and two wait
        "WAIT scontrol requeue $JOB",
        # Slurm looks at limits every 30 seconds. One minute may be over before it has warned a job that began slowly.
        "WAIT scontrol update JobId=$JOB TimeLimit=2 THEN scontrol update JobId=$JOB TimeLimit=20",
    ],
    1: ["WAIT scancel --signal=USR1 $JOB", "WAIT scancel --signal=USR2 $JOB"],
    2: ["WAIT scancel --signal=TERM $JOB", "WAIT scancel --full --signal=USR1 $JOB"],
    3: ["kill -9 $PPID"],
}

PREEMPTED = "env -i PATH=$PATH SLURM_CONF=$SLURM_CONF sbatch --partition=urgent --nodelist=$SLURMD_NODENAME "
PREEMPTED += "--exclusive --output=/dev/null --wrap true"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm") / "cluster") as environment:
        before = {name: os.environ.get(name) for name in environment}
        os.environ |= environment
        yield environment
        for name, value in before.items():
            os.environ.pop(name)
            os.environ |= {} if value is None else {name: value}


@pytest.fixture
def launch(command, tmp_path, cluster):
    """Start a sweep whose jobs do what the files in deeds/ say."""
    (tmp_path / "deeds").mkdir()
    settings = ("--config-dir", "options", "loss=commander", f"loss.folder={tmp_path / 'deeds'}", "save_every=1000")

    def launch(*arguments: str):
        process = command(*settings, *arguments)
        (tmp_path / "launcher.pid").write_text(str(process.pid))
        return process

    return launch


def until(holds: Callable[[], bool], process) -> None:
    while process.poll() is None and not holds():
        time.sleep(0.1)
    assert process.poll() is None, process.communicate()[0]


def states(sweep: Path) -> dict[str, str]:
    return {file.parent.name: json.loads(file.read_text())["state"] for file in sorted(sweep.glob("*/run.json"))}


def weights(run: Path) -> dict:
    return load_file(run / "model" / "unet" / "diffusion_pytorch_model.safetensors")


def submitted(sweep: Path) -> list[int]:
    """How many jobs each submission had."""
    files = sorted(sweep.glob(".slurm/*/jobs.json"))
    return [len(json.loads(file.read_text())["jobs"]) for file in files]


@pytest.mark.long
def test_no_step_is_lost_but_those_since_a_warning_and_nothing_is_submitted_twice(launch, tmp_path):
    deeds, rough, quiet = tmp_path / "deeds", tmp_path / "multirun/rough", tmp_path / "multirun/quiet"
    sweep = ("seed=0,1,2,3", f"steps={STEPS}", "validate_every=12")
    local = launch(*sweep, "sweep=quiet")
    output = local.communicate()[0]
    assert local.returncode == 0, output
    for file in deeds.iterdir():
        file.unlink()
    for seed, lines in DEEDS.items():
        (deeds / str(seed)).write_text("".join(f"{line}\n" for line in lines))

    sweep = (*sweep, "sweep=rough", *ON_SLURM, "hydra.launcher.array_parallelism=2", "hydra.launcher.timeout_min=20")
    killed = launch(*sweep)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert set(states(rough).values()) == {"running"}, "Slurm goes on with the jobs"

    second = launch(*sweep)
    output = second.communicate()[0]
    assert second.returncode == 1, output
    assert submitted(rough) == [4], "the jobs of the first command are followed"
    assert output.count("which an earlier command has submitted") == 4
    assert "killed by SIGKILL" in output
    assert states(rough) == {f"seed-{seed}": "finished" if seed < 3 else "failed" for seed in range(4)}, output
    assert "seed-3: | " in output, "the last lines of its output"
    assert "t2i: 1 of 4 jobs failed; run the same command again to retry them" in output

    third = launch(*sweep)
    output = third.communicate()[0]
    assert third.returncode == 0, output
    assert submitted(rough) == [4, 1], "finished jobs need no node"
    for seed in range(4):
        steps = len((deeds / f"{seed}.steps").read_text().splitlines())
        assert steps == STEPS + (4 if seed == 3 else 0), "only the killed job computes steps for the second time"
        assert not (deeds / str(seed)).read_text(), "everything was done to it"
        expected, got = weights(quiet / f"seed-{seed}"), weights(rough / f"seed-{seed}")
        assert all(expected[key].equal(got[key]) for key in expected)


def test_a_command_that_ends_leaves_its_jobs_to_slurm_also_while_sbatch_runs(launch, tmp_path, monkeypatch):
    """Besides, a job of a partition of higher priority takes the node of one of them."""
    (tmp_path / "deeds/0").write_text("sleep 5\n")
    (tmp_path / "deeds/1").write_text(f"WAIT {PREEMPTED}\n")
    slow = tmp_path / "bin/sbatch"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\ntouch began\nsleep 6\nexec {shutil.which("sbatch")} "$@"\n')
    slow.chmod(0o755)
    sweep = ("sweep=left", "seed=0,1", "steps=6", *ON_SLURM, "hydra.launcher.array_parallelism=1")
    with monkeypatch.context() as patched:
        patched.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
        killed = launch(*sweep)
        until((tmp_path / "began").exists, killed)
        killed.kill()
        killed.communicate()
    interrupted = launch(*sweep)
    until((tmp_path / "multirun/left/seed-0/metrics.jsonl").exists, interrupted)
    interrupted.send_signal(signal.SIGINT)
    output = interrupted.communicate()[0]
    assert interrupted.returncode == 130, output
    assert output.count("which an earlier command has submitted") == 2
    assert "the same command follows it, and `scancel" in output
    last = launch(*sweep)
    output = last.communicate()[0]
    assert last.returncode == 0, output
    assert submitted(tmp_path / "multirun/left") == [2]
    assert set(states(tmp_path / "multirun/left").values()) == {"finished"}
    assert not (tmp_path / "deeds/1").read_text()
    assert len((tmp_path / "deeds/1.steps").read_text().splitlines()) == 6


def test_a_job_that_gets_no_further_between_two_limits_says_so_and_stops(launch, tmp_path):
    (tmp_path / "deeds/0.start").write_text("(sleep 1; scancel --signal=USR2 $JOB) & sleep 60\n")
    (tmp_path / "deeds/1").write_text("sleep 8\n")  # longer than max_hours, which is another limit
    limits = ("hydra.launcher.timeout_min=2", "hydra.launcher.signal_delay_s=30", "max_hours=0.002")
    sweep = launch("sweep=slow", "seed=0,1", "steps=6", *ON_SLURM, *limits)
    output = sweep.communicate()[0]
    assert sweep.returncode == 1, output
    assert states(tmp_path / "multirun/slow") == {"seed-0": "failed", "seed-1": "finished"}
    assert "it has reached two time limits without getting any further, both times before the first" in output
    assert "seed-1: queued again, at step 4" in output


def test_two_nodes_with_two_processes_each_train_one_run(launch, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    (tmp_path / "deeds/0").write_text("WAIT scancel --signal=USR1 $JOB\n")
    together = ("hydra.launcher.nodes=2", "hydra.launcher.tasks_per_node=2")
    settings = ("seed=0", "steps=6", "batch_size=8", "micro_batch_size=2")
    sweep = launch("sweep=four", *settings, *ON_SLURM, *together)
    output = sweep.communicate()[0]
    console = tmp_path / "multirun/four/job/console.log"
    assert sweep.returncode == 0, output + console.read_text()
    alone = launch("sweep=alone", *settings)
    assert alone.wait() == 0
    four, one = weights(tmp_path / "multirun/four/job"), weights(tmp_path / "multirun/alone/job")
    for key, expected in one.items():
        assert four[key].allclose(expected, atol=1e-5), key
