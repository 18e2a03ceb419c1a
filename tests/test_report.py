"""The specification of the report, as it would be sent to W&B."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from t2i.config import ConfigError
from t2i.config.keys import flat
from t2i.report import main

pytestmark = [
    pytest.mark.skipif(find_spec("wandb_workspaces") is None, reason="needs the package wandb-workspaces"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # its own
]


@pytest.fixture
def no_login(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


@pytest.mark.parametrize("sweep", ["gamma", 'it\'s "it"'])
def test_any_name_of_a_sweep_is_taken(sweep, no_login, tmp_path):
    main(["--wandb", "me/t2i", "--sweep", sweep, "--dry-run", "--out", str(tmp_path / "report.json")])
    assert f'"value": {json.dumps(sweep)}' in (tmp_path / "report.json").read_text()


@pytest.fixture
def grid(no_login, tmp_path, capsys) -> dict:
    main(["--wandb", "me/t2i", "--sweep", "gamma", "--dry-run", "--out", str(tmp_path / "report.json")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["project"], report["displayName"]) == ({"entityName": "me", "name": "t2i"}, "Sweep gamma")
    (grid,) = [block["metadata"] for block in report["spec"]["blocks"] if block["type"] == "panel-grid"]
    return grid


def panels(grid: dict, kind: str) -> list[dict]:
    return [panel["config"] for panel in grid["panelBankSectionConfig"]["panels"] if panel["viewType"] == kind]


def test_the_runs_are_those_of_the_sweep(grid):
    (runs,) = grid["runSets"]
    (condition,) = runs["filters"]["filters"]
    assert condition == {"key": {"section": "run", "name": "group"}, "op": "=", "value": "gamma", "disabled": False}
    assert "grouping" not in runs or runs["grouping"] == []  # the plots against the learning rate show single runs


def test_curves_are_grouped_by_snr_gamma(grid):
    curves = panels(grid, "Run History Line Plot")
    assert [curve["metrics"] for curve in curves] == [["val/loss"], ["train/loss_unweighted"]]
    assert {(curve["groupBy"], curve["xAxis"]) for curve in curves} == {("loss.value.snr_gamma", "step")}


def test_settings_are_plotted_against_the_validation_loss(grid):
    settings = ["config:optimizer.value.lr", "config:loss.value.snr_gamma"]
    (scatter,) = panels(grid, "Scatter Plot")
    assert [scatter["xAxis"], scatter["zAxis"], scatter["yAxis"]] == [*settings, "summary:val/loss"]
    (parallel,) = panels(grid, "Parallel Coordinates Plot")
    assert [column["accessor"] for column in parallel["columns"]] == [*settings, "summary:val/loss"]


@pytest.mark.slow
def test_what_is_plotted_is_what_a_run_logs(train, tmp_path):
    run = train(tmp_path / "run", "steps=1", "sample_every=0")
    assert {"step", "val/loss", "train/loss_unweighted"} <= run.latest().keys()
    assert {"loss.snr_gamma", "optimizer.lr"} <= flat(run.config).keys()


def test_images_and_differences_are_there(grid):
    assert panels(grid, "Media Browser")[0]["mediaKeys"] == ["samples"]
    assert panels(grid, "Run Comparer") == [{"diffOnly": "split"}]


def test_without_a_login_it_says_so(no_login):
    with pytest.raises(ConfigError, match=r"^not logged in to W&B; run: wandb login, or use --dry-run$"):
        main(["--wandb", "me/t2i", "--sweep", "gamma"])


def test_without_the_package_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as error:
        main(["--wandb", "me/t2i", "--sweep", "gamma", "--dry-run"])
    assert str(error.value) == (
        "t2i report needs the package wandb_workspaces; install it with: pip install 't2i[reports]'"
    )


@pytest.mark.parametrize("wandb", ["t2i", "me/", "/t2i", "me/t2i/gamma"])
def test_the_project_must_be_named_with_its_entity(wandb):
    with pytest.raises(ConfigError, match=f"^--wandb {wandb}: must be ENTITY/PROJECT"):
        main(["--wandb", wandb, "--sweep", "gamma"])


def test_help_imports_nothing_heavy():
    code = "import sys, t2i.report; t2i.report.parser().format_help(); print({'wandb', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
