"""t2i in Python: what runs left as DataFrames and images, comparisons, and training in a process of its own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.synthetic import write_run
from PIL import Image

import t2i
from t2i.api.folders import find_folder

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "run_of_832b2fd"
IMPORTS = [
    "import t2i; import t2i.train, t2i.compare",
    "import t2i.train, t2i.compare; import t2i",
    "from t2i.train import main; from t2i.compare import parser; import t2i; t2i.train; t2i.compare",
    "import t2i; t2i.train; t2i.compare; from t2i.train import main",
]


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """multirun/gamma in the current folder: two runs, one of which is not finished."""
    shutil.copytree(FIXTURES / "multirun", tmp_path / "multirun")
    monkeypatch.chdir(tmp_path)
    return Path("multirun/gamma")


def python(code: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, **options)


def test_importing_t2i_is_light():
    code = "import t2i, sys; print({'torch', 'pandas', 'hydra', 'numpy', 'matplotlib'} & set(sys.modules), dir(t2i))"
    printed = python(code, check=True).stdout
    assert printed.startswith("set()")
    assert "'train'" in printed


@pytest.mark.slow
@pytest.mark.parametrize("imports", IMPORTS)
def test_a_command_is_a_module_and_a_function_in_any_order_of_imports(imports):
    checks = (
        "import sys; from types import ModuleType; import t2i.train as m; assert isinstance(m, ModuleType); "
        "assert t2i.train is m is sys.modules['t2i.train'] and callable(m) and m.main; "
        "assert t2i.compare is sys.modules['t2i.compare'] and callable(t2i.compare) and t2i.compare.parser"
    )
    python(f"{imports}; {checks}", check=True)


def test_a_run_is_what_its_folder_holds(sweep):
    run = t2i.open_run(sweep / "loss.snr_gamma-1")
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert list(run.metrics.index) == [line["step"] for line in lines]
    for line in lines:
        values = run.metrics.loc[line["step"]].dropna().to_dict()
        assert values == {key: value for key, value in line.items() if key != "step"}
    assert run.state == "finished"
    assert run.result == lines[-1]["val/loss"]
    assert run.config["loss"]["snr_gamma"] == 1
    assert run.model == run.folder / "model"
    assert "val/loss" in repr(run)
    assert run.folder == sweep / "loss.snr_gamma-1"
    assert t2i.open_run("gamma/loss.snr_gamma-1").folder == run.folder


def test_samples_are_the_images_of_the_run_with_prompts_and_steps(sweep):
    run = t2i.open_run(sweep / "loss.snr_gamma-1")
    prompts = run.config["samples"]["prompts"]
    assert run.samples.steps == [0, 8]
    assert [sample.prompt for sample in run.samples.at(8)] == prompts
    strip = np.asarray(Image.open(run.folder / "samples" / "step-000008.png").convert("RGB"))
    assert np.array_equal(np.concatenate([np.asarray(s.image) for s in run.samples.at(8)], axis=1), strip)
    page = run._repr_html_()
    assert page.count("<img") == 2  # curves and samples
    assert "finished" in page


def test_runs_are_a_table_of_what_differs(sweep):
    table = t2i.open_runs(sweep).table
    assert len(table) == 2
    assert set(table["loss.snr_gamma"]) == {1, 5}
    assert len(t2i.open_runs()) == 3
    assert "<table" in t2i.open_runs(sweep)._repr_html_()
    assert find_folder("gamma") == sweep


def test_a_comparison_has_the_verdicts_of_the_command(tmp_path):
    """The numbers of the table are those that the tests of significance give; nothing is written unasked."""
    for gamma, better in ((1, 0.0), (5, 0.1)):
        write_run(tmp_path / f"gamma-{gamma}", f"loss.snr_gamma={gamma}", better=better)
    compared = t2i.compare(tmp_path, baseline="loss.snr_gamma=1")
    (verdict,) = compared.comparison.verdicts(compared.metric)
    row = compared.table.loc[verdict.variant.label]
    total = verdict.total
    assert list(row[["difference", "low", "high", "p"]]) == [total.estimate, total.low, total.high, verdict.p]
    assert row["verdict"] == "better"
    assert list(compared.table.index) == ["snr_gamma=5", "snr_gamma=1"]
    assert np.isnan(compared.table.loc["snr_gamma=1", "difference"])
    assert compared.verdicts[0].startswith("snr_gamma=5 is better than snr_gamma=1")
    assert "<table" in compared._repr_html_()
    assert not (tmp_path / "comparison").exists()


def test_what_is_not_there_is_said(sweep):
    with pytest.raises(t2i.ConfigError, match="did you mean multirun/full"):
        t2i.open_run("ful")
    with pytest.raises(t2i.ConfigError, match=r"holds 2 runs; t2i.open_runs"):
        t2i.open_run(sweep)
    with pytest.raises(t2i.ConfigError, match="holds no run"):
        t2i.open_runs(FIXTURES / "pics")
    with pytest.raises(t2i.ConfigError, match="what is to be compared"):
        t2i.compare()
    with pytest.raises(t2i.ConfigError, match='write "steps=100", "run=mine"'):
        t2i.train(steps=100, run="mine")
    with pytest.raises(t2i.ConfigError, match='"steps=100", not 100'):
        t2i.train(100)
    with pytest.raises(t2i.ConfigError, match=r"use t2i\.sweep"):
        t2i.train("-m", "seed=0,1")
    with pytest.raises(AttributeError, match="has no attribute trian"):
        t2i.trian  # noqa: B018
