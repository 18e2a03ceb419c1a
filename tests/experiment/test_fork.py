"""Runs that begin with another's state: what they go on with, and what they survive."""

import json
import logging
import multiprocessing
import shutil
import signal

import pytest
import torch
from helpers.dying import train_and_die
from helpers.runs import compose, untimed
from safetensors.torch import load_file, save_file

from t2i.config import ConfigError
from t2i.config.checks import check
from t2i.experiment import run as runs
from t2i.experiment.plan import make_plan
from t2i.optim.lr_schedules import warmup_stable_decay
from t2i.runs.parentage import RESERVED

SHORT = ["sample_every=0", "validate_every=3", "log_every=2", "save_every=3", "keep_checkpoints=all"]
SHORT += ["validation.items=2", "batch_size=4", "micro_batch_size=2", "steps=9"]
LORA = ["adapter=lora", "adapter.rank=2"]


def left_by(folder, step=9):
    """All of the checkpoint of a step, the lines of metrics.jsonl but for timings, and the validation errors."""
    state = {}
    for file in sorted((folder / "checkpoints" / f"step-{step:06d}").iterdir()):
        if file.suffix == ".safetensors":
            state[file.name] = load_file(file)
        elif file.suffix == ".pt":
            state[file.name] = torch.load(file, weights_only=True)
    errors = {file.name: file.read_bytes() for file in (folder / "validation").glob("*.parquet")}
    metrics = untimed(lines(folder))
    return state, metrics, errors


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same(first, second):
    assert left_by(first)[1:] == left_by(second)[1:]
    torch.testing.assert_close(left_by(first)[0], left_by(second)[0], rtol=0, atol=0)


@pytest.fixture(scope="module")
def trunk(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trunk") / "run"
    train(folder, *SHORT, "lr_scheduler=cosine")
    return folder


@pytest.fixture(scope="module")
def lora(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora") / "run"
    train(folder, *SHORT, *LORA, "adapter.dropout=0.1")
    return folder


@pytest.mark.slow
def test_a_fork_with_nothing_changed_is_the_trunk_that_goes_on(train, trunk, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in trunk.rglob("*")}
    fork = train(tmp_path / "fork", *SHORT, "lr_scheduler=cosine", f"from.run={trunk}@6")
    assert_same(tmp_path / "fork", trunk)
    assert [file.name for file in (tmp_path / "fork/checkpoints").iterdir()] == ["step-000009"]
    assert not (tmp_path / "fork" / RESERVED).exists()
    assert {path: path.stat().st_mtime_ns for path in trunk.rglob("*")} == before
    assert fork.info["parent"]["anew"] == fork.info["parent"]["changed"] == []
    assert {"weights", "optimizer", "average", "meter", "draws", "records"} <= set(fork.info["parent"]["taken"])


@pytest.mark.slow
def test_a_fork_of_adapters_with_dropout_is_the_trunk_that_goes_on(train, lora, tmp_path):
    train(tmp_path / "fork", *SHORT, *LORA, "adapter.dropout=0.1", f"from.run={lora}@6")
    assert_same(tmp_path / "fork", lora)


@pytest.mark.slow
def test_a_fork_of_a_schedule_free_run_is_the_trunk_that_goes_on(train, tmp_path):
    train(tmp_path / "trunk", *SHORT, "optimizer=schedulefree", "stop_at=9", "steps=12")
    train(tmp_path / "fork", *SHORT, "optimizer=schedulefree", "stop_at=9", "steps=12", f"from.run={tmp_path}/trunk@6")
    assert_same(tmp_path / "fork", tmp_path / "trunk")


@pytest.mark.slow
def test_twice_the_steps_have_the_learning_rates_of_a_run_of_that_length(train, trunk, tmp_path, caplog):
    from diffusers.optimization import get_cosine_schedule_with_warmup

    settings = ["lr_scheduler=cosine", "steps=18", "stop_at=9", "validate_every=0"]
    with caplog.at_level(logging.INFO):
        train(tmp_path / "fork", *SHORT, *settings, "log_every=1", f"from.run={trunk}@6")
    expected = rates(lambda optimizer: get_cosine_schedule_with_warmup(optimizer, 0, 18))
    logged = {line["step"]: line["train/lr"] for line in lines(tmp_path / "fork") if "train/lr" in line}
    assert [logged[step] for step in (7, 8, 9)] == pytest.approx(expected[6:9], rel=1e-12)
    assert f"learning rate from step 6 on: {expected[6]:.4g} by the schedule of this run; it was 0.00025" in caplog.text
    assert "begins anew: learning-rate schedule" in caplog.text
    assert "steps: 9 → 18" in caplog.text


@pytest.mark.slow
def test_the_same_with_warm_up_and_decay(train, tmp_path):
    """The trunk has begun to decay, and the fork has not."""
    settings = ["lr_scheduler=wsd", "lr_scheduler.num_warmup_steps=2", "lr_scheduler.decay_share=0.5"]
    train(tmp_path / "trunk", *SHORT, *settings, "validate_every=0", "steps=6")
    train(tmp_path / "fork", *SHORT, *settings, "validate_every=0", "steps=12", f"from.run={tmp_path}/trunk@3")
    logged = {line["step"]: line["train/lr"] for line in lines(tmp_path / "fork")}
    expected = rates(lambda optimizer: warmup_stable_decay(optimizer, 12, 2, 0.5))
    assert [logged[step] for step in (4, 6, 8, 10, 12)] == pytest.approx([expected[s - 1] for s in (4, 6, 8, 10, 12)])
    assert [line["step"] for line in lines(tmp_path / "fork")] == [2, 4, 6, 8, 10, 12]


def rates(make):
    """The learning rate of each step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=compose("experiment=smoke").optimizer.lr)
    schedule, found = make(optimizer), []
    for _ in range(18):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.slow
def test_other_settings_and_another_battery_go_on_with_the_same_weights(train, trunk, tmp_path, caplog):
    settings = ["loss=mse", "optimizer.weight_decay=0.5", "validation.seed=1", "ema=none", "seed=7"]
    with caplog.at_level(logging.INFO):
        fork = train(tmp_path / "fork", *SHORT, "lr_scheduler=cosine", *settings, f"from.run={trunk}@6")
    state = left_by(tmp_path / "fork")[0]
    assert state["optimizer.pt"]["param_groups"][0]["weight_decay"] == 0.5
    assert state["optimizer.pt"]["state"][0]["step"] == 9
    assert "ema.safetensors" not in state or not state["ema.safetensors"]
    assert [line["step"] for line in lines(tmp_path / "fork") if "val/loss" in line] == [9]
    assert fork.info["parent"]["anew"] == ["meter"]
    assert "records without validations" in fork.info["parent"]["taken"]
    assert "are those of seed 7 from step 6 on" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(("only", "metric"), [("weights", "val/loss"), ("ema", "val/ema/loss")])
def test_the_weights_alone_begin_a_run_at_step_0(train, trunk, tmp_path, only, metric):
    settings = ["optimizer=lion", "batch_size=2", "steps=1", f"from.run={trunk}@6", f"from.only={only}"]
    fork = train(tmp_path / "fork", *SHORT, *settings)
    (before,) = [line[metric] for line in lines(trunk) if line["step"] == 6]
    start = lines(tmp_path / "fork")[0]
    assert (start["step"], start["val/loss"], start["val/ema/loss"]) == (0, before, before)
    assert fork.info["ancestors"] == []


@pytest.mark.slow
def test_what_was_exported_begins_another_run(train, trunk, lora, tmp_path):
    """A pipeline and LoRA weights, as another tool would give them."""
    train(tmp_path / "full", *SHORT, "steps=0", f"from.run={trunk}/model")
    assert lines(tmp_path / "full")[0]["val/loss"] == lines(trunk)[-1]["val/ema/loss"]
    file = lora / "model" / "pytorch_lora_weights.safetensors"
    train(tmp_path / "adapters", *SHORT, *LORA, "steps=0", f"from.run={file}")
    assert lines(tmp_path / "adapters")[0]["val/loss"] == pytest.approx(lines(lora)[-1]["val/ema/loss"], rel=1e-6)
    for setting, answer in {
        "adapter.alpha=8": "use adapter.alpha=2 with adapter.rank=2",
        "adapter.rank=4": "2×",
    }.items():
        with pytest.raises(ConfigError, match=answer):
            train(tmp_path / setting, *SHORT, *LORA, setting, "steps=0", f"from.run={file}")
    kohya = {key.replace("unet.", "lora_unet_", 1).replace(".", "_"): value for key, value in load_file(file).items()}
    kohya = {
        key.replace("_lora_A_weight", ".lora_down.weight").replace("_lora_B_weight", ".lora_up.weight"): value
        for key, value in kohya.items()
    }
    kohya |= {f"{key.partition('.')[0]}.alpha": torch.tensor(2.0) for key in list(kohya)}
    save_file(kohya, tmp_path / "kohya.safetensors")
    train(tmp_path / "kohya", *SHORT, *LORA, "steps=0", f"from.run={tmp_path}/kohya.safetensors")
    assert lines(tmp_path / "kohya")[0]["val/loss"] == lines(tmp_path / "adapters")[0]["val/loss"]


@pytest.mark.slow
def test_contradictions_are_refused_before_anything_heavy_is_loaded(small, trunk, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "assemble", None)
    damaged = tmp_path / "damaged"
    shutil.copytree(trunk, damaged)
    (damaged / "checkpoints/step-000006/optimizer.pt").write_bytes(b"")
    worse = [json.dumps({"step": step, "val/loss": 1.0 + step}) for step in (0, 3)]
    (damaged / "metrics.jsonl").write_text("\n".join(worse))
    refused = {
        f"from.run={trunk}@5": r"step 5 of .* is not there \(it holds those of the steps 3, 6, 9\)",
        f"from.run={trunk}@9": "steps=9 leaves nothing to train",
        f"from.run={trunk}@6 batch_size=8": "batch_size: 4 → 8 can't be changed",
        f"from.run={trunk}@6 adapter=lora": "trained all weights of the denoiser, and this run trains adapters",
        f"from.run={trunk}@6 optimizer=lion": "another optimizer has another state",
        f"from.run={trunk}@6 +optimizer.amsgrad=true": "the optimizer's state would have other parts",
        f"from.run={trunk}@6 ema=none from.only=some": "from.only=some is not known",
        f"from.run={damaged}@3 early_stop.patience=1": "would end the run where it begins: val/loss of ",
        f"from.run={damaged}@6": r"is damaged \(optimizer.pt has 0 bytes .*choose another, of step 3, 9",
        "from.only=weights": "says what to take, but not of what",
        "from.run=nowhere@3": "there is no run nowhere",
        f"from.run={trunk}/model adapter=lora": "is a pipeline, whose weights are frozen next to adapters",
        f"from.run={tmp_path}/x.safetensors": "there is no such file",
    }
    for number, (typed, answer) in enumerate(refused.items()):
        cfg = compose(*small, *SHORT, "lr_scheduler=cosine", *typed.split())
        with pytest.raises(ConfigError, match=answer):
            begin(cfg, tmp_path / str(number))


def begin(cfg, folder):
    """What a run does before it loads data and weights."""
    check(cfg, num_processes=1)
    runs.run(cfg, make_plan(cfg), folder, [])


MOMENTS = [
    ("t2i.experiment.fork", "reserve", 1),
    ("t2i.experiment.fork", "copy_records", 1),
    ("t2i.runs.shared_records", "atomic_write", 1),
    ("t2i.experiment.fork", "_say", 1),
    ("t2i.training.step", "squared_error", 3),
    ("t2i.runs.checkpoints", "_write", 2),
    ("t2i.experiment.run", "release", 1),
    ("t2i.training.step", "squared_error", 3),
]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("parent_leaves", [False, True])
def test_a_fork_that_is_killed_at_any_moment_ends_with_the_same_bits(small, trunk, tmp_path, parent_leaves):
    """Also if the parent goes on and removes the checkpoint, once it is held, and if the parent is gone at last."""
    parent, context = tmp_path / "parent", multiprocessing.get_context("fork")
    shutil.copytree(trunk, parent)
    overrides = [*small, *SHORT, "save_every=1", "lr_scheduler=cosine", f"from.run={parent}@3"]
    killed = 0
    for moment in [*MOMENTS, ("t2i.runs.folder", "flat", 10**9)]:
        process = context.Process(target=train_and_die, args=(tmp_path / "fork", overrides, *moment, signal.SIGKILL))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        killed += 1
        if parent_leaves and moment[1] == "_say":
            shutil.rmtree(parent / "checkpoints" / "step-000003")
        if parent_leaves and moment[1] == "release":
            shutil.rmtree(parent)
    assert killed == len(MOMENTS)
    assert_same(tmp_path / "fork", trunk)
