"""Every file that a run or a sweep leaves behind may be damaged: commands succeed, or name the file in one line.

T2I_FUZZ=5000 sets the number of cases of the fuzz test, which are the same every time unless it is set;
T2I_FUZZ_SECONDS=180 ends it after that time, with the cases done so far.
"""

import csv
import hashlib
import json
import os
import re
import shutil
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.damage import CASES, attempt, contents, damage, fuzz, remove, vouch
from helpers.rights import obeying_permissions
from helpers.runs import compose
from helpers.synthetic import write_run
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from t2i import compare
from t2i.cli import failing
from t2i.comparison import grouping, html_report
from t2i.comparison.html_report import write_page
from t2i.comparison.results import read_results
from t2i.comparison.tables import write_results
from t2i.config import ConfigError
from t2i.config.compose import CONF
from t2i.experiment.plan import make_plan
from t2i.experiment.run import run
from t2i.runs import checkpoints
from t2i.runs.errors_file import read_errors
from t2i.runs.folder import Run
from t2i.sampling.pipelines import load_pipeline
from t2i.sweeps.job import Job
from t2i.sweeps.manifest import Guard, write_manifest
from t2i.sweeps.process import JobProcess
from t2i.sweeps.table import JobsTable

pytestmark = pytest.mark.slow

SETTINGS = ["steps=2", "save_every=1", "validate_every=1", "sample_every=2", "log_every=1", "samples.steps=1"]
SETTINGS += ["batch_size=2", "micro_batch_size=2", "validation.items=2", "sweep=s", "samples.prompts=[red apple]"]
SETTINGS += [
    "evaluate_every=2",
    "evaluation.items=2",
    "evaluation.steps=1",
    "metric=[nearest_reference]",
]  # with images
RUNS = {"finished": ["seed=0"], "half": ["seed=1"], "intact": ["seed=2"]}


@pytest.fixture(scope="module")
def sweep(train, tmp_path_factory):
    """A sweep of a finished run, one that is paused half-way, and one that is never damaged."""
    folder = tmp_path_factory.mktemp("damaged") / "sweep"
    for name, overrides in RUNS.items():
        train(folder / name, *SETTINGS, *overrides, *(["stop_at=1"] if name == "half" else []))
    write_manifest(folder, multirun())
    return folder


def multirun():
    """The configuration that Hydra hands to the callbacks of `t2i train -m`."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    loader = ConfigLoaderImpl(create_config_search_path(str(CONF)))
    return loader.load_configuration("config", ["seed=0,1", "loss=mse", "sweep=s"], RunMode.MULTIRUN)


def state_files(folder: Path) -> list[str]:
    """The files of the runs `finished` and `half`, but for the exported model, and sweep.json."""
    names = [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file()]
    kept = [name for name in names if not name.startswith("intact") and "/model/" not in name and ".lock" not in name]
    # Small files of many fields come often, each of the large ones now and then.
    often = [name for name in kept if name.endswith(("run.json", "config.yaml", "metrics.jsonl", "sweep.json"))]
    return [*often * 3, *kept]


# --- commands --------------------------------------------------------------------------------------------------------


@cache
def configuration(small: tuple[str, ...], name: str) -> DictConfig:
    return compose(*small, *SETTINGS, *RUNS[name])


def check(sweep: Path, small: tuple[str, ...], scratch: Path, name: str, mutate) -> None:
    remove(scratch)
    shutil.copytree(sweep, scratch / "sweep")
    here = scratch / "sweep"
    content = mutate(name, (here / name).read_bytes())
    damage(here / name, content)
    if name == "sweep.json":
        config = multirun()
        config.hydra.sweep.dir = str(here)
        with suppress(SystemExit), obeying_permissions():
            Guard().on_multirun_start(config)
        return
    damaged, part = name.split("/", 1)
    folder = here / damaged
    if name.endswith((".safetensors", ".pt")) and isinstance(content, bytes) and len(content) % 2:
        vouch(folder / part)  # the checksums don't reveal it
    before = contents(here)
    job = Job(folder, [], 2, 1, 0, state="running")
    with obeying_permissions():
        JobProcess(job, None, SimpleNamespace(exitcode=1), before="another").record_end()
    assert job.state
    damage_again(folder / part, content)

    attempt(lambda: compare.main([str(here), "--out", str(scratch / "out")]))
    if "checkpoints" in part or part == "config.yaml":
        attempt(lambda: load_pipeline(folder))
    assert contents(here) == before, "compare or sample wrote into the runs"

    cfg = configuration(small, damaged)
    if attempt(lambda: run(cfg, make_plan(cfg), folder, [])):
        assert json.loads((folder / "run.json").read_text())["state"] == "finished"
    after = contents(here)
    others = {path for path in before if not path.startswith(f"{damaged}/")}
    assert {path: after.get(path) for path in others} == {path: before[path] for path in others}
    assert {path.name for path in scratch.iterdir()} <= {"sweep", "out"}
    if damaged == "finished":
        kept = {path for path in before if path not in (name, "finished/run.json", "finished/config.yaml")}
        kept = {path for path in kept if path.startswith("finished/")}
        assert {path: after.get(path) for path in kept} == {path: before[path] for path in kept}


def damage_again(file: Path, content: bytes | str | None) -> None:
    """The sweep has noted the end of the job, in run.json at most."""
    if file.name == "run.json" and not file.is_dir():
        damage(file, content)


def test_any_damage_is_survived_or_named(sweep, small, tmp_path):
    def one(name, mutate, chance):
        with pytest.MonkeyPatch.context() as patch:
            if chance != 7 or (CASES or 200) < 100:  # the page takes seconds, and shows what the tables show
                patch.setattr(html_report, "write_page", lambda *arguments: None)
            check(sweep, tuple(small), tmp_path / "scratch", name, mutate)

    fuzz(CASES or 200, state_files(sweep), one)


# --- what is said ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b'{"varied": {}}', b"[]", b"null", b"3", b"", b"\0" * 64, b"\xff\xfe", None, b"[" * 200_000]
)
def test_the_guard_ends_the_sweep_with_one_line(content, tmp_path, capsys):
    file = tmp_path / "sweep.json"
    file.touch()
    damage(file, content)
    config = multirun()
    config.hydra.sweep.dir = str(tmp_path)
    with pytest.raises(SystemExit) as end:
        Guard().on_multirun_start(config)
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"t2i: {file}")
    assert told.count("\n") == 1
    assert told.endswith("or use another sweep=NAME\n")


def test_the_guard_ends_the_sweep_on_an_error_that_nobody_expected(tmp_path, capsys, monkeypatch):
    def fail(*arguments):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("t2i.sweeps.manifest.write_manifest", fail)
    with pytest.raises(SystemExit) as end:
        Guard().on_multirun_start(multirun())
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("t2i: ")


def test_a_validation_of_billions_of_equal_values_is_not_read(tmp_path):
    """It is a file of a few megabytes."""
    run = write_run(tmp_path / "run")
    names = ["item", "log_snr", "eps"]
    columns = pa.table({name: np.zeros(10**6) for name in names})
    with pq.ParquetWriter(run / "validation/step-000200.parquet", columns.schema, compression="zstd") as writer:
        for _ in range(100):
            writer.write_table(columns)
    with pytest.raises(ConfigError, match=r"step-000200\.parquet can't be read \(it has 100000000 rows of 3 columns"):
        read_errors(run / "validation/step-000200.parquet")


FIELDS = [
    ('{"state": ["finished"]}', "state is of the wrong type, list"),
    ('{"state": "finished", "final": 3}', "final is of the wrong type, int"),
    ('{"state": "finished", "final": {"val/loss": "low"}}', "final holds something other than numbers"),
    ('{"choices": []}', "choices is of the wrong type, list"),
    ('{"overrides": [1]}', "overrides holds something other than text"),
    ('{"battery": {"hash": []}}', "hash is of the wrong type, list"),
    ("[]", "holds list instead of an object"),
    ("null", "holds NoneType instead of an object"),
    ("", "can't be read"),
    ("\0" * 100, "can't be read"),
    ("[" * 200_000, "can't be read"),
    ('{"a":' * 101 + "1" + "}" * 101, "nested more than 100 levels deep"),
]


@pytest.mark.parametrize(("content", "reason"), FIELDS)
def test_train_refuses_a_damaged_run_json_and_compare_leaves_the_run_out(content, reason, tmp_path):
    write_run(tmp_path / "good")
    folder = write_run(tmp_path / "bad", "seed=1")
    (folder / "run.json").write_text(content)
    with pytest.raises(ConfigError, match=re.escape(f"{folder / 'run.json'}")) as error:
        Run(folder, compose())
    assert reason in str(error.value)
    assert str(error.value).endswith("delete this file, and the run continues from its newest checkpoint")
    comparison = grouping.compare(read_results([tmp_path]))
    assert [run.name for run in comparison.runs] == ["good"]
    assert [(run.name, run.state, reason in told) for run, told in comparison.left_out.items()] == [
        ("bad", "unreadable", True)
    ]


@pytest.mark.parametrize("name", ["run.json", "config.yaml", "metrics.jsonl", "validation/step-000200.parquet"])
@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"7", b"\0" * 99, b"\xff\xfe\0", None])
def test_compare_leaves_a_damaged_run_out_with_the_reason(name, content, tmp_path):
    write_run(tmp_path / "good")
    folder = write_run(tmp_path / "bad", "seed=1")
    damage(folder / name, content)
    comparison = grouping.compare(read_results([tmp_path]))
    assert [run.name for run in comparison.runs] == ["good"]
    (reason,) = comparison.left_out.values()
    assert reason.isprintable()
    write_results(comparison, tmp_path)
    if content == b"":  # the page takes seconds
        write_page(comparison, comparison.metrics[0], tmp_path)


def test_damaged_lines_of_the_metrics_are_dropped_with_a_warning(tmp_path, caplog):
    folder = write_run(tmp_path / "run")
    good = (folder / "metrics.jsonl").read_text()
    bad = ['{"step": 1, "val/loss": null}', '{"step": "2"}', '{"step": 3, "a": {}}', "[]", "\0\0", '{"step": 1e400}']
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in bad) + good)
    with (folder / "config.yaml").open() as config:
        run = Run(folder, OmegaConf.load(config))
    assert [line["step"] for line in run.metrics()] == [0, 100, 200]
    run.rewind(200)
    assert (folder / "metrics.jsonl").read_text() == good
    assert f"{len(bad)} damaged lines are dropped" in caplog.text


def test_a_job_with_a_damaged_folder_fails_and_says_what_was_found(tmp_path):
    for content in (b"", b"[]", b'{"state": []}', b"\0" * 9, None):
        folder = write_run(tmp_path / hashlib.sha256(repr(content).encode()).hexdigest()[:8])
        damage(folder / "run.json", content)
        job = Job(folder, [], 200, 100, 0, state="running")
        JobProcess(job, None, SimpleNamespace(exitcode=-9), before=None).record_end()
        assert job.state == "failed"
        assert job.reason.startswith("killed by SIGKILL (out of memory?); its end could not be noted: ")
        assert str(folder / "run.json") in job.reason


def test_a_full_disk_while_the_end_of_a_job_is_noted_does_not_end_the_sweep(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device", "run.json")

    monkeypatch.setattr("t2i.runs.folder.atomic_write", full)
    job = Job(write_run(tmp_path / "run", state="running"), [], 200, 100, 0, state="running")
    JobProcess(job, None, SimpleNamespace(exitcode=-35), before="another").record_end()
    assert job.state == "failed"
    assert job.reason == "killed by signal 35; its end could not be noted: run.json: No space left on device"


@pytest.mark.parametrize("hours", [-10, 10])
def test_no_clock_decides_whether_a_job_has_written_its_run_json(hours, tmp_path):
    folder = write_run(tmp_path / "run", state="finished", process="new")
    moment = time.time() + 3600 * hours  # of a file server whose clock is wrong
    os.utime(folder / "run.json", (moment, moment))
    job = Job(folder, [], 200, 100, 0, state="running")
    JobProcess(job, None, SimpleNamespace(exitcode=0), before="old").record_end()
    assert job.state == "finished"
    job.state = "running"
    JobProcess(job, None, SimpleNamespace(exitcode=1), before="new").record_end()
    assert job.state == "failed"


def test_every_process_that_begins_a_run_leaves_another_token(tmp_path):
    tokens = set()
    for _ in range(3):
        Run(tmp_path / "run", compose()).begin(overrides=[], choices={})
        tokens.add(Job(tmp_path / "run", [], 1, 1, 0).token())
    assert len(tokens - {None}) == 3


@pytest.mark.parametrize(
    "records", [{"../../victim": 5}, {"/etc/hostname": 1}, {"metrics.jsonl": "5"}, [], {"a\nb": 1}]
)
def test_a_manifest_that_lists_other_files_than_records_is_damaged_and_deletes_nothing(records, tmp_path):
    (tmp_path / "victim").write_text("kept")
    part = {"denoiser": torch.nn.Linear(1, 1)}
    checkpoint = checkpoints.save(tmp_path / "runs/run/checkpoints", 5, part, keep=1)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps(manifest | {"records": records}))
    assert checkpoints.resume(checkpoint.parent, part) is None
    assert (tmp_path / "victim").read_text() == "kept"


# --- text that leaves ------------------------------------------------------------------------------------------------

HOSTILE = "\x1b[2J\x1b]0;owned\x07\u202e\ud800"


def test_no_control_character_of_a_run_reaches_the_terminal_the_page_or_the_table(tmp_path, capsys):
    good = write_run(tmp_path / "good")
    with (good / "config.yaml").open("a") as file:
        file.write('"key\\e[2J": "value\\e[2J"\n')
    write_run(tmp_path / "bad\x1b[31m\n", "seed=1", state="\x1b[31mfailed", error=HOSTILE)
    compare.main([str(tmp_path), "--out", str(tmp_path / "out")])
    shown = (
        capsys.readouterr().out
        + (tmp_path / "out/comparison.html").read_text()
        + (tmp_path / "out/results.csv").read_text()
    )
    assert "\ufffd" in shown
    assert all(character.isprintable() or character in "\n\t" for character in shown)


def test_a_sweep_s_table_and_log_show_no_control_characters(tmp_path, capsys, caplog):
    job = Job(tmp_path / "a\x1b[2Jb", [], 2, 1, 0, state="failed", reason=f"[bold]{HOSTILE}")
    other = Job(tmp_path / "c", [], 2, 1, 0, state=HOSTILE)
    with caplog.at_level("INFO"), JobsTable([job, other], 1) as table:
        table.changed(job)
    shown = capsys.readouterr().out + caplog.text
    assert "[bold]" in shown
    assert all(character.isprintable() or character == "\n" for character in shown)


def test_a_message_reaches_the_terminal_without_control_characters(capsys):
    def command(arguments):
        raise ConfigError(f"{HOSTILE}\n  second line")

    with pytest.raises(SystemExit):
        failing.run(command, [])
    assert capsys.readouterr().err.split("\n") == [
        "t2i: " + "\ufffd[2J\ufffd]0;owned\ufffd\ufffd\ufffd",
        "  second line",
        "",
    ]


def test_a_spreadsheet_computes_nothing_of_results_csv(tmp_path):
    write_run(tmp_path / "a", "loss.x='=1+1'", "seed=1")
    write_run(tmp_path / "b", "loss.x='@SUM(A1)'", "seed=2")
    write_run(tmp_path / "d", "loss.x='＝1+1'", "seed=4")
    write_run(tmp_path / "-c", "loss.x=-3", "seed=3", state="failed", error="+cmd|' /C calc'!A0")
    compare_folder = tmp_path / "out"
    compare_folder.mkdir()
    write_results(grouping.compare(read_results([tmp_path])), compare_folder)
    with (compare_folder / "results.csv").open() as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert {"'=1+1", "'＝1+1", "'@SUM(A1)", "-3", "'-c", "'+cmd|' /C calc'!A0"} <= set(cells)
    assert all(not cell.startswith(("=", "+", "@")) for cell in cells)
    assert "=1+1" in pq.read_table(compare_folder / "results.parquet")["loss.x"].to_pylist()
