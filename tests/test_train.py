"""The command line from end to end, in its own processes, as a user runs it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from t2i.config import CONF
from t2i.tracking.offline import records, step_of

pytestmark = pytest.mark.slow


@pytest.fixture
def command(small, tmp_path):
    """Start `python -m t2i.train` with the settings of a small run, in a folder that is not the checkout."""

    def start(*arguments: str) -> subprocess.Popen:
        program = [sys.executable, "-m", "t2i.train", *arguments, *small, "threads=1"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        environment = {key: value for key, value in os.environ.items() if "WANDB_SERVICE" not in key}  # of this process
        return subprocess.Popen(program, cwd=tmp_path, env=environment | {"OMP_NUM_THREADS": "1"}, **pipes)

    return start


def test_a_killed_run_is_continued_by_the_same_command(command, tmp_path):
    folder = tmp_path / "multirun" / "killed"
    settings = ("run=killed", "steps=30", "tracker=wandb", "validate_every=0", "sample_every=0")
    running = command(*settings)
    while not list(folder.glob("checkpoints/step-*")) and running.poll() is None:
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    output = running.communicate()[0]
    assert running.returncode == -signal.SIGKILL, output
    assert json.loads((folder / "run.json").read_text())["state"] == "running"
    interrupted_at = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]

    other = command(*settings, "seed=1")
    assert "seed: 0 → 1" in other.communicate()[0]
    assert other.returncode == 2

    again = command(*settings, "save_every=15", "num_workers=1")
    output = again.communicate()[0]
    assert again.returncode == 0, output
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 31))
    assert 0 < interrupted_at < 30
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len({file.name for file in files}) == 1  # one W&B run
    rows = [record.history for file in files for _, record in records(file.read_bytes())]
    assert [step_of(row) for row in rows if row.item] == list(range(1, 31))


def test_a_run_goes_on_in_the_layout_that_it_began_with(command, tmp_path):
    settings = ("steps=4", "validate_every=0", "sample_every=0")
    layouts = {"first": "false", "last": "true"}
    for name, layout in layouts.items():
        alone = command(f"run=alone-{name}", f"channels_last={layout}", *settings)
        begins = command(f"run={name}", f"channels_last={layout}", "stop_at=2", *settings)
        assert [alone.communicate() and alone.returncode, begins.communicate() and begins.returncode] == [0, 0]
        goes_on = command(f"run={name}", *settings)
        forks = command(f"run=fork-{name}", f"from={tmp_path}/multirun/{name}@2", *settings)
        assert [goes_on.communicate() and goes_on.returncode, forks.communicate() and forks.returncode] == [0, 0]
    for name, layout in layouts.items():
        runs = [tmp_path / "multirun" / run for run in (f"alone-{name}", name, f"fork-{name}")]
        found = {json.dumps(json.loads((run / "run.json").read_text())["channels_last"]) for run in runs}
        weights = {next((run / "model").glob("*et/*.safetensors")).read_bytes() for run in runs}
        assert (found, len(weights)) == ({layout}, 1)


def test_ctrl_c_says_how_to_go_on(command, tmp_path):
    running = command("run=stopped", "steps=2000", "validate_every=0", "sample_every=0")
    while not list(tmp_path.glob("multirun/stopped/checkpoints/step-*")) and running.poll() is None:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    output = running.communicate()[0]
    assert running.returncode == 130, output
    assert "SIGINT: the run ends after this step, and is saved" in output
    assert "interrupted; to go on from its checkpoint of step " in output
    assert output.rstrip().endswith("run=stopped")
    assert "Traceback" not in output
    assert json.loads((tmp_path / "multirun/stopped/run.json").read_text())["state"] == "interrupted"


def test_a_multirun_over_snr_gamma(command, tmp_path):
    sweep = command("-m", "sweep=gamma", "loss.snr_gamma=1,5", "steps=2")
    output = sweep.communicate()[0]
    assert sweep.returncode == 0, output
    results = {
        file.parent.name: json.loads(file.read_text()) for file in (tmp_path / "multirun/gamma").glob("*/run.json")
    }
    assert len(results) == 2
    assert {result["state"] for result in results.values()} == {"finished"}
    assert len({result["battery"]["hash"] for result in results.values()}) == 1
    assert not any(set(name) & set("=,") for name in results)


def test_a_run_goes_on_in_another_folder_with_its_settings_but_for_those_typed(command, tmp_path):
    """The first command gets what it says to type from the refusal of the second."""
    short = ("validate_every=0", "sample_every=0", "save_every=2")
    first = command("run=base", "steps=4", "loss=mse", "lr_scheduler=cosine", *short)
    assert first.wait() == 0, first.communicate()[0]
    longer = command("run=base", "steps=6", "loss=mse", "lr_scheduler=cosine", *short)
    assert "type: t2i train from=base steps=6 run=base-2" in longer.communicate()[0]
    program = [sys.executable, "-m", "t2i.train", "from=base@2", "steps=6", "run=base-2"]
    fork = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
    assert fork.returncode == 0, fork.stdout + fork.stderr
    assert "goes on from step 2 of multirun/base" in fork.stdout + fork.stderr
    assert "learning rate from step 2 on: 0.00075 by the schedule of this run; it was 0.0005 there" in fork.stdout
    info = json.loads((tmp_path / "multirun/base-2/run.json").read_text())
    assert (info["parent"]["run"], info["parent"]["step"], info["choices"]["loss"]) == ("../base", 2, "mse")
    assert info["parent"]["changed"] == ["lr_scheduler.num_training_steps", "steps"]


def test_the_folder_with_the_configuration_is_found_from_anywhere(tmp_path):
    code = "import t2i.train; t2i.train.main()"
    run = subprocess.run([sys.executable, "-c", code, "--cfg", "job"], cwd=tmp_path, capture_output=True, text=True)
    assert "_target_: t2i.diffusion.losses.MinSNR" in run.stdout
    assert CONF.is_dir()


def test_a_fault_shows_its_traceback_without_hydras_frames(tmp_path):
    lines = [
        "from t2i.diffusion.losses import MSE",
        "class Mine(MSE): pass",
        "from t2i.experiment import run",
        "def faulty(*_): raise KeyError('faulty')",
        "run.run = faulty",
    ]
    (tmp_path / "mine.py").write_text("\n".join(lines))
    arguments = ["loss=mse", "loss._target_=mine.Mine", "allowed_targets=[mine]"]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    program = [sys.executable, "-m", "t2i", "train", *arguments]
    run = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 1
    assert "KeyError: 'faulty'" in run.stderr
    assert "run_job" not in run.stderr
    assert run.stderr.splitlines()[-1].endswith("please report it, with the traceback above and `t2i --version`")
