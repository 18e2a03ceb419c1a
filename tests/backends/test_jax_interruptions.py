"""What happens to runs happens to those in JAX, too: signals, kills, forks, sweeps, comparisons."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
import torch
from helpers.damage import vouch
from helpers.dying import train_and_die
from helpers.runs import untimed
from safetensors.torch import load_file

pytest.importorskip("jax")

pytestmark = pytest.mark.slow  # each start traces and compiles for seconds
SETTINGS = ["backend=jax", "sample_every=0", "save_every=2"]
NEVER = 10**9
# The meter fetches two arrays after each step. Each signal comes after the second step of a process, the last one after
# its first.
DEATHS = [(4, signal.SIGTERM), (4, signal.SIGUSR1), (4, signal.SIGINT), (2, signal.SIGKILL), (NEVER, signal.SIGKILL)]


def program(*arguments):
    return [sys.executable, "-m", *arguments]


def left_by(folder):
    parts = [load_file(folder / f"checkpoints/step-000010/{name}.safetensors") for name in ("denoiser", "ema")]
    return parts, untimed(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))


@pytest.fixture(scope="module")
def undisturbed(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("undisturbed") / "run", *SETTINGS).folder


@pytest.mark.long
def test_a_run_that_is_stopped_by_every_signal_has_the_same_bits(small, undisturbed, tmp_path):
    folder, context, done = tmp_path / "run", multiprocessing.get_context("spawn"), []
    for call, signum in DEATHS:
        moment = ("t2i.backends.jax.meter", "own_examples", call, signum)
        process = context.Process(target=train_and_die, args=(folder, [*small, *SETTINGS], *moment))
        process.start()
        process.join()
        saved = max((int(file.name.removeprefix("step-")) for file in folder.glob("checkpoints/step-*")), default=0)
        done.append((process.exitcode, saved))
    codes, saved = zip(*done, strict=True)
    assert codes == (1, 1, 1, -signal.SIGKILL, 0)
    assert 0 < saved[0] < saved[1] < saved[2] == saved[3] < saved[4]
    (ours, lines), (theirs, expected) = left_by(folder), left_by(undisturbed)
    assert lines == expected
    for one, other in zip(ours, theirs, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one | other)


@pytest.mark.parametrize("moment", ["text", torch.zeros(1)], ids=["text", "of another shape"])
def test_damaged_moments_lead_to_the_checkpoint_before(train, undisturbed, tmp_path, caplog, moment):
    """Also where the checksums are right."""
    settings = [*SETTINGS, "keep_checkpoints=all"]
    train(tmp_path / "run", *settings, "stop_at=4")
    part = tmp_path / "run/checkpoints/step-000004/optimizer.pt"
    state = torch.load(part, weights_only=True)
    state["state"][0]["exp_avg"] = moment
    torch.save(state, part)
    vouch(part)
    train(tmp_path / "run", *settings)
    assert "step-000004 can't be loaded (step-000004: exp_avg of weight 0 is" in caplog.text
    (ours, lines), (theirs, expected) = left_by(tmp_path / "run"), left_by(undisturbed)
    assert lines == expected
    for one, other in zip(ours, theirs, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one | other)


def test_a_fork_of_a_run_in_pytorch_goes_on_with_its_state(train, tmp_path):
    trunk = train(tmp_path / "trunk", "sample_every=0")
    fork = train(tmp_path / "fork", "backend=jax", "sample_every=0", f"from.run={trunk.folder}@5")
    assert {"weights", "optimizer", "average", "meter", "draws", "records"} <= set(fork.info["parent"]["taken"])
    assert fork.info["parent"]["anew"] == []
    for ours, theirs in zip(untimed(fork.metrics()), untimed(trunk.metrics()), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_the_jobs_of_a_sweep_compile_once_and_are_compared_with_pytorch(small, tmp_path):
    settings = ["sample_every=0", "steps=2", "validate_every=2", "threads=1", f"cache_dir={tmp_path / 'cache'}"]
    own = {"T2I_CACHE": str(tmp_path / "compiled")}

    def run(*arguments):
        done = subprocess.run(program(*arguments), cwd=tmp_path, env=os.environ | own, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    jobs = ["-m", *small, *settings, "loss.snr_gamma=1,5", "sweep=jobs", "backend=jax"]
    assert "2 finished" in run("t2i.train", *jobs)
    for name in ("gradients", "update", "predict"):
        assert len([*(tmp_path / "compiled" / "jax").glob(f"jit_{name}-*-cache")]) == 1
    run("t2i.train", *small, *settings, "loss.snr_gamma=1", "run=jobs/in-torch")
    said = run("t2i.compare", "multirun/jobs")
    assert "snr_gamma=1 backend=torch" in said
