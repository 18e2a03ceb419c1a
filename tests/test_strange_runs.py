"""What somebody else's run folder can't do: write outside of itself, publish what lies there, make a command wait."""

import json
import logging
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.not_files import endless, huge, pipe
from helpers.synthetic import write_run
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file

from t2i import check, compare, push, sample, train, weights
from t2i.cli import failing
from t2i.comparison.results import read_results
from t2i.config import ConfigError
from t2i.publishing import push as publishing
from t2i.publishing.card_code import use_adapter
from t2i.publishing.model_card import command, fenced, plain
from t2i.runs.config_file import read_config
from t2i.runs.errors_file import read_errors
from t2i.runs.files import atomic_write, lock, replacing
from t2i.runs.folder import Run
from t2i.runs.links import refuse_links_out
from t2i.runs.records import LONGEST, read_metrics
from t2i.runs.samples_file import read_samples
from t2i.sampling.pipelines import load_pipeline
from t2i.sweeps.job import Job
from t2i.sweeps.process import cause_of_death

MINE = "# mine\n"


@pytest.fixture(autouse=True)
def logging_as_before():
    """Hydra configures the root logger."""
    root = logging.getLogger()
    handlers, level, make = root.handlers[:], root.level, logging.getLogRecordFactory()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.setLogRecordFactory(make)


def end_of(main, arguments, capsys, code=2):
    """Run a command, which must end within seconds, with one line if it fails; returns what it shows."""
    signal.alarm(60)
    try:
        with pytest.raises(SystemExit) as end:
            failing.run(main, list(map(str, arguments)))
    finally:
        signal.alarm(0)
        GlobalHydra.instance().clear()
    shown = capsys.readouterr()
    assert end.value.code == code, shown.out + shown.err
    assert "Traceback" not in shown.err
    return shown.out + shown.err


@pytest.fixture
def home(tmp_path):
    """A folder of the user's, next to a stranger's; nothing in it may change."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "bashrc").write_text(MINE)
    yield folder
    assert {file.name: file.read_text() for file in folder.iterdir()} == {"bashrc": MINE}


def linked(run, place, home, to=""):
    """Put a link to the user's folder, or to a file in it, into a run folder."""
    path = run / place
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to(os.path.relpath(home / to, path.parent.resolve()))


# --- compare ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "to"), [("comparison", ""), ("comparison/results.csv", "bashrc"), ("comparison/x.png", "new")]
)
@pytest.mark.parametrize("typed", [False, True])
def test_compare_writes_nothing_through_a_link(place, to, typed, home, tmp_path, capsys):
    run = write_run(tmp_path / "run")
    linked(run, place, home, to)
    shown = end_of(compare.main, [run, *(["--out", run / "comparison"] if typed else [])], capsys)
    assert f"{run / place} leads to {home / to}" in shown


def test_compare_does_not_empty_what_a_lock_links_to(home, tmp_path):
    run = write_run(tmp_path / "run", state="running")
    linked(run, ".lock", home, "bashrc")
    assert [result.state for result in read_results([run])] == ["killed"]


# --- train -----------------------------------------------------------------------------------------------------------


PLACES = [
    *(".hydra", "samples", "checkpoints", "validation", "model", "wandb", "tensorboard"),
    *("checkpoints/.step-000001.tmp", "checkpoints/step-000002", "model/unet", "wandb/run-1"),
]
FILES = [
    *(".hydra/overrides.yaml", "train.log", "metrics.jsonl", "run.json", "config.yaml", ".lock", ".run.json.tmp"),
    *("samples/step-000001.png", "samples/progress.png", "validation/step-000001.parquet", "wandb/run-1/run-1.wandb"),
]


@pytest.mark.parametrize("place", [*PLACES, *FILES])
def test_no_link_of_a_run_leads_out_of_it(place, home, tmp_path):
    run = write_run(tmp_path / "run")
    linked(run, place, home, "bashrc" if place in FILES else "")
    with pytest.raises(ValueError, match=r"leads to .*home.*, outside of .*; remove it, or use another folder"):
        refuse_links_out(run, run)
    (run / place).unlink()
    (run / "inside").symlink_to("samples")
    (run / "wandb" / "logs").mkdir(parents=True)
    (run / "wandb" / "logs" / "debug-core.log").symlink_to(home / "core.log")  # which W&B makes
    refuse_links_out(run, run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "arguments"),
    [
        ("r/.hydra", ["run=r"]),
        ("r/train.log", ["run=r"]),
        ("s/seed-1", ["run=s/seed-1"]),
        ("s/seed-1", ["-m", "sweep=s", "seed=1,2"]),
        ("s/seed-1/console.log", ["-m", "sweep=s", "seed=1,2"]),
        ("s/multirun.yaml", ["-m", "sweep=s", "seed=1,2"]),
    ],
)
def test_train_refuses_such_a_folder_before_anything_is_written(place, arguments, home, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "multirun"
    linked(runs, place, home, "bashrc" if "." in place[3:] and "hydra" not in place else "")
    if arguments[0] == "run=s/seed-1":
        (runs / "s" / "sweep.json").write_text("{}")
    before = sorted(runs.rglob("*"))
    assert "leads to" in end_of(train.cli, [*arguments, "optimizer.lr=-1"], capsys)
    assert sorted(runs.rglob("*")) == before


def test_a_file_is_replaced_not_followed(home, tmp_path):
    linked(tmp_path / "run", "run.json", home, "bashrc")
    atomic_write(tmp_path / "run" / "run.json", "{}")
    assert not (tmp_path / "run" / "run.json").is_symlink()
    linked(tmp_path / "run", "page.html", home, "bashrc")
    with replacing(tmp_path / "run" / "page.html") as file:
        file.write_text("theirs")
    assert (tmp_path / "run" / "page.html").read_text() == "theirs"


def test_a_file_is_replaced_when_it_is_complete(tmp_path):
    """Whoever reads it, or writes it at the same time, finds the earlier or the later content; nothing is left."""
    file = tmp_path / "page.html"
    file.write_text("before")
    with pytest.raises(KeyboardInterrupt), replacing(file) as first:  # noqa: PT012
        first.write_text("half")
        raise KeyboardInterrupt
    with replacing(file) as first, replacing(file) as second:
        first.write_text("first")
        second.write_text("second")
        assert file.read_text() == "before"
    assert file.read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    with pytest.raises(OSError, match=r"nowhere/page\.html'$"), replacing(tmp_path / "nowhere/page.html") as temporary:
        temporary.write_text("x")
    with replacing(Path("/dev/null")) as device:
        assert device == Path("/dev/null")


# --- what is not a file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pipe, endless, huge])
@pytest.mark.parametrize("name", ["run.json", "config.yaml", "metrics.jsonl"])
def test_compare_waits_for_no_file(kind, name, tmp_path):
    run = write_run(tmp_path / "run")
    kind(run / name)
    (result,) = read_results([run])
    if name == "metrics.jsonl" and kind is not huge:
        assert result.step is None
    else:
        assert (result.state, f"{name} can't be read" in result.reason) == ("unreadable", True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pipe, endless, huge])
def test_sample_push_and_train_wait_for_no_file(kind, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "run")
    step = run / "checkpoints" / "step-000001"
    step.mkdir(parents=True)
    kind(step / "manifest.json")
    assert "nor a complete checkpoint" in end_of(sample.main, [run, "x"], capsys)
    kind(run / "config.yaml")
    end_of(push.main, [run, "--repo", "mine"], capsys)
    sweep = tmp_path / "multirun" / "s"
    sweep.mkdir(parents=True)
    kind(sweep / "sweep.json")
    assert "sweep.json" in end_of(train.cli, ["-m", "sweep=s", "seed=1,2"], capsys)
    kind(run / "metrics.jsonl")
    Job(run, [], 1, 0, 0).read_metrics()
    kind(run / "console.log")
    if kind is huge:
        assert cause_of_death(1, run / "console.log").startswith("exit code 1")


def test_a_line_that_no_run_writes_is_passed_over(tmp_path):
    run = write_run(tmp_path / "run")
    metrics = run / "metrics.jsonl"
    before = metrics.read_text()
    metrics.write_bytes(bytes(3 * LONGEST + 7) + b"\n" + before.encode())
    assert "".join(f"{text}\n" for text in read_metrics(run)) == before
    job = Job(run, [], 1, 0, 0)
    job.read_metrics()
    assert job.metrics["step"] == 200


def test_samples_of_gigabytes_in_a_small_file_are_not_decoded(tmp_path):
    file = tmp_path / "step-000001.png"
    Image.new("1", (20_000, 9_000)).save(file)
    with pytest.raises(ConfigError, match=r"step-000001\.png can't be read \(Image size .* delete it"):
        read_samples(file, 2)


def test_a_validation_that_holds_texts_is_not_read(tmp_path):
    file = tmp_path / "step-000001.parquet"
    pq.write_table(pa.table({"log_snr": [0.0], "eps": [0.0], "x": ["x" * 10**6]}), file)
    with pytest.raises(ConfigError, match=r"it holds something other than numbers"):
        read_errors(file)


def test_a_run_can_be_claimed_while_somebody_looks_whether_it_is_in_use(tmp_path):
    run = Run(write_run(tmp_path / "run"), OmegaConf.create(read_config(tmp_path / "run")))
    looking = threading.Event()

    def look():
        with lock(run.folder):
            looking.set()
            time.sleep(0.3)

    thread = threading.Thread(target=look)
    thread.start()
    looking.wait()
    with run.claimed():
        thread.join()


# --- push ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(train, tmp_path_factory):
    overrides = ["steps=1", "validate_every=0", "sample_every=0"]
    return train(tmp_path_factory.mktemp("runs") / "run", *overrides).folder


@pytest.fixture
def theirs(trained, tmp_path, monkeypatch):
    """A finished run to push, and what is published of it: name -> content."""
    monkeypatch.setattr(publishing, "_full_name", lambda repo: f"me/{repo}")
    monkeypatch.setattr(publishing, "_upload", lambda *_: "address")
    return shutil.copytree(trained, tmp_path / "run")


def pushed(run, capsys, code=2):
    return end_of(push.main, [run, "--repo", "mine"], capsys, code)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "to"),
    [
        *(("model/key.txt", "bashrc"), ("model/README.md", "bashrc"), ("model/samples.png", "bashrc")),
        *(("model/unet", ""), ("model/scheduler", ""), ("samples/progress.png", "bashrc")),
    ],
)
def test_push_follows_no_link(place, to, theirs, home, capsys):
    (theirs / "samples").mkdir()
    (theirs / "samples" / "progress.png").write_text("not mine")
    linked(theirs, place, home, to)
    assert str(theirs / place) in pushed(theirs, capsys)


@pytest.mark.slow
def test_push_publishes_no_samples_of_elsewhere(theirs, tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "progress.png").write_text("private")
    linked(theirs, "samples", tmp_path, "pictures")
    assert f"leads to {tmp_path / 'pictures' / 'progress.png'}" in pushed(theirs, capsys)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["- x=${oc.env:DATABASE_URL}\n", "- ${nope}\n", "- [\n", "- &a [x, x]\n- &b [*a, *a]\n", "!!binary x"]
)
def test_the_command_on_the_card_is_what_run_json_says(text, theirs, capsys, monkeypatch):
    """Nothing reads the file that Hydra left, in which anything may stand."""
    monkeypatch.setenv("DATABASE_URL", "postgres://me:pa55w0rd@db")
    (theirs / ".hydra").mkdir()
    (theirs / ".hydra" / "overrides.yaml").write_text(text)
    info = json.loads((theirs / "run.json").read_text())
    (theirs / "run.json").write_text(json.dumps(info | {"overrides": ["seed=0", "x=${oc.env:DATABASE_URL}"]}))
    pushed(theirs, capsys, code=None)
    card = (theirs / "model" / "README.md").read_text()
    assert "python -m t2i.train seed=0 'x=${oc.env:DATABASE_URL}'" in card
    assert "pa55w0rd" not in card


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        *({"pictures": None}, {"pictures": 3}, {"packages": ["a"]}, {"parameters": "many"}, {"precision": None}),
        {"trained_parameters": []},
    ],
)
def test_a_run_that_lacks_what_the_card_says_is_named(fields, theirs, capsys):
    info = json.loads((theirs / "run.json").read_text()) | fields
    (theirs / "run.json").write_text(json.dumps({key: value for key, value in info.items() if value is not None}))
    assert f"{theirs / 'run.json'} or config.yaml does not hold what the card says" in pushed(theirs, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("content", ["[", "[]", "{}", '{"_class_name": "X\\nimport os"}', '{"_class_name": null}'])
def test_a_damaged_scheduler_is_named(content, theirs, capsys):
    (theirs / "model" / "scheduler" / "scheduler_config.json").write_text(content)
    assert len(pushed(theirs, capsys).splitlines()) == 1


@pytest.mark.parametrize("place", ["handler.py", "unet/modeling.PY", "pytorch_model.bin", "vae/x.ckpt", ".x/a.so"])
def test_push_publishes_no_code(place, theirs, capsys):
    (theirs / "model" / place).parent.mkdir(exist_ok=True)
    (theirs / "model" / place).write_text("")
    assert f"{theirs / 'model' / place} is code or a pickle" in pushed(theirs, capsys)


def test_push_publishes_no_model_that_leads_to_code(theirs, capsys):
    index = theirs / "model" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"unet": ["evil", "X"]}))
    assert "leads to code or files that are not the model's (unet: ['evil', 'X'])" in pushed(theirs, capsys)


def test_nothing_on_the_card_becomes_code_or_markup():
    path = 'tiny")\nimport os; os.system("evil") #'
    code = use_adapter(path, "me/mine", "DDIMScheduler")
    calls = [line for line in code.splitlines() if "os.system" in line]
    assert [line.startswith("pipeline = DiffusionPipeline.from_pretrained(") for line in calls] == [True]
    compile(code, "card", "exec")
    assert plain("a\n| <b> | ![x](y) `z`") == "a\ufffd\\| \\<b> \\| !\\[x](y) \\`z\\`"
    assert fenced(command(["x=\n```\n# me\n````"])).startswith("`````\n")


# --- sample ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a: 1\n", "model: ???\nadapter: ???\nscheduler: ???\n", "adapter: 3\n"])
def test_a_configuration_without_a_model_is_named(text, trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("model"))
    (run / "config.yaml").write_text(text)
    assert "has no _target_" in end_of(sample.main, [run, "x"], capsys)


@pytest.mark.parametrize(
    "settings",
    [
        {"unet.megatron_config": {"a": 1}, "unet.megatron_core": "this", "unet.r": 4},
        {"unet.target_modules": "(a+)+b", "unet.r": 4},
        {"unet.rank_pattern": {"(a+)+b": 1}, "unet.r": 4},
        {"unet.r": "x", "unet.target_modules": ["to_q"]},
        {"unet.nonsense": 1, "unet.r": 4},
        ["a"],
    ],
)
def test_settings_of_adapters_that_no_export_has_are_refused(settings, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("model"))
    (run / "model").mkdir()
    tensors = {
        "unet.conv_in.lora_A.weight": torch.zeros(4, 4, 3, 3),
        "unet.conv_in.lora_B.weight": torch.zeros(16, 4, 1, 1),
    }
    file = run / "model" / "pytorch_lora_weights.safetensors"
    save_file(tensors, file, metadata={"format": "pt", "lora_adapter_metadata": json.dumps(settings)})
    with pytest.raises(ValueError, match=r"pytorch_lora_weights\.safetensors can't be loaded"):
        load_pipeline(run)


# --- the terminal ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_check_and_weights_show_no_control_character_and_obey_no_markup(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "theirs" / "loss"
    folder.mkdir(parents=True)
    for name in ("a\x1b[31mb", "a[/b]", "a$_$"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.yaml").write_text("_target_: t2i.diffusion.losses.MSE\nnormalize: false\nerror: ${error}\n")
        (tmp_path / "theirs" / "experiment").mkdir(exist_ok=True)
        text = f"# @package _global_\ndefaults: [{{override /loss: {json.dumps(name)}}}]\n"
        (tmp_path / "theirs" / "experiment" / "theirs.yaml").write_text(text)
        shown = end_of(weights.main, ["--config-dir", tmp_path / "theirs", "experiment=theirs"], capsys, code=None)
        assert "\x1b" not in shown
        assert name.replace("\x1b", "\ufffd") in shown
    text = '# @package _global_\nloss: {_target_: "\\e[31mx"}\n'
    (tmp_path / "theirs" / "experiment" / "theirs.yaml").write_text(text)
    assert "\x1b" not in end_of(check.main, ["--config-dir", tmp_path / "theirs", "experiment=theirs"], capsys)


def test_a_folder_that_is_used_by_other_means_is_refused_too(home, tmp_path):
    run = write_run(tmp_path / "run")
    linked(run, "samples", home)
    with pytest.raises(ValueError, match="leads to"), Run(run, OmegaConf.create(read_config(run))).claimed():
        pass


def test_a_log_that_cannot_be_written_is_named(tmp_path, capsys, monkeypatch):
    """As in somebody else's folder; root may write everywhere, so that a folder stands there."""
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "multirun" / "r" / "train.log"
    log.mkdir(parents=True)
    assert end_of(train.cli, ["run=r", "optimizer.lr=-1"], capsys) == f"t2i: {log}: Is a directory\n"
