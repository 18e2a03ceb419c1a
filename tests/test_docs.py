"""What docs/ says is so: its code runs, the files that it names exist, and the run folder is as described."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir

from t2i.config.compose import CONF
from t2i.config.instantiate import build
from t2i.runs.folder import Run

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
EXTENDING = [page for page in PAGES if page.name.startswith("add-a-")]
FILE = re.compile(r'^```\w+ title="(?P<name>[^"]+)"\n(?P<content>.*?)^```$', re.MULTILINE | re.DOTALL)


@pytest.fixture(params=EXTENDING, ids=lambda page: page.stem)
def written(request, tmp_path, monkeypatch) -> Path:
    """A folder with the files that a page shows."""
    write(request.param, tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def write(page: Path, folder: Path) -> None:
    for file in FILE.finditer(page.read_text()):
        path = folder / file["name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file["content"])


def test_the_tests_that_a_page_shows_pass(written, tmp_path):
    (file,) = written.glob("test_*.py")
    module = importlib.import_module(file.stem)
    tests = [function for name, function in vars(module).items() if name.startswith("test_")]
    assert tests
    for number, test in enumerate(tests):
        folder = tmp_path / str(number)
        folder.mkdir()
        test(folder) if "tmp_path" in test.__code__.co_varnames[: test.__code__.co_argcount] else test()


def test_the_option_that_a_page_shows_composes_and_builds(written):
    (file,) = written.glob("my_conf/*/*.yaml")
    group, (module,) = file.parent.name, written.glob("my_*.py")
    overrides = [
        f"{group}={file.stem}",
        f"allowed_targets=[{module.stem}]",
        f"hydra.searchpath=[file://{file.parent.parent}]",
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=overrides)
    if group == "model":
        cfg.model.path = "tiny"  # for that of Stable Diffusion is on the Hub
    assert build(cfg, group) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_that_a_page_names_exist(page):
    named = re.findall(r"`((?:t2i|tests|conf|docs|examples|benchmarks)/[\w./]*)[`,]", page.read_text())
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_options_that_a_page_names_exist(page):
    """GROUP=OPTION in code; options that the page itself adds are not ours."""
    text = page.read_text()
    groups = {folder.name for folder in CONF.iterdir() if folder.is_dir()} - {"hydra", "wandb"}
    own = {Path(file["name"]).stem for file in FILE.finditer(text)}
    for group, options in re.findall(rf"(?<![\w.-])({'|'.join(groups)})=([a-z]\w*(?:,[a-z]\w*)*)", text):
        for option in set(options.split(",")) - own:
            assert (CONF / group / f"{option}.yaml").is_file(), f"{group}={option}"


@pytest.mark.slow
def test_what_the_pages_add_trains_together(small_pipeline, tmp_path):
    for page in EXTENDING:
        write(page, tmp_path)
    modules = ",".join(file.stem for file in tmp_path.glob("my_*.py"))
    options = ["loss=v_error", "dataset=discs", "tracker=csv", "model=sd15_clip_skip", "experiment=smoke"]
    settings = [
        f"allowed_targets=[{modules}]",
        f"model.path={small_pipeline}",
        "run=mine",
        "steps=2",
        "cache_dir=cache",
    ]
    command = [sys.executable, "-m", "t2i.train", "--config-dir", "my_conf", *options, *settings]
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    subprocess.run(command, cwd=tmp_path, check=True, env=os.environ | {"PYTHONPATH": path})
    run = tmp_path / "multirun" / "mine"
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
    assert "2,train/loss," in (run / "curves.csv").read_text()


def described(page: str, section: str) -> set[str]:
    """The names in the first column of the tables of a section; `I` stands for a number."""
    text = (ROOT / "docs" / page).read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return {name for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for name in re.findall(r"`([^`]+)`", row)}


@pytest.mark.slow
def test_the_run_folder_is_as_described(train, tmp_path):
    run: Run = train(tmp_path / "run")
    assert set(json.loads((run.folder / "run.json").read_text())) <= described("run-folder.md", "run.json")
    metrics = {re.sub(r"snr_bin_\d", "snr_bin_I", key.replace("val/ema/", "val/")) for key in run.latest()}
    assert metrics - {"step"} <= described("run-folder.md", "metrics.jsonl")
    columns = pq.read_schema(next((run.folder / "validation").iterdir())).names
    assert set(columns) == described("run-folder.md", "Validation")
    (checkpoint, *_) = run.checkpoints.iterdir()
    only_fp16 = {"scaler.pt"}
    assert {file.name for file in checkpoint.iterdir()} == described("run-folder.md", "Checkpoints") - only_fp16
