"""The command, as it is typed."""

import subprocess
import sys

import pytest
from helpers.synthetic import TIMESTEPS, write_run

from t2i import compare
from t2i.compare import main
from t2i.config import ConfigError


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """A sweep of two settings and a failed run; the page is not drawn, which takes seconds."""
    monkeypatch.setattr(compare, "write", lambda *_: None)
    for gamma, better in ((1, 0.0), (5, 0.1)):
        for lr in ("3e-4", "1e-3"):
            write_run(tmp_path / f"gamma-{gamma}-{lr}", f"loss.snr_gamma={gamma}", f"optimizer.lr={lr}", better=better)
    error = "FloatingPointError: the loss is not finite at step 31; try a lower optimizer.lr"
    write_run(tmp_path / "failed", "loss.snr_gamma=20", state="failed", validated=(0,), error=error)
    return tmp_path


@pytest.mark.parametrize("columns", [100, 200])
def test_tables_sentences_and_reasons_fit_the_terminal(columns, sweep, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    main([str(sweep)])
    shown = capsys.readouterr().out
    flat = " ".join(shown.split())
    for words in [
        "Variants by loss.snr_gamma × optimizer.lr (the keys that differ).",
        "Baseline: snr_gamma=1 lr=3e-4 (the first; --baseline chooses another).",
        "snr_gamma=5 lr=1e-3 is better than snr_gamma=1 lr=3e-4 by 1",
        "One seed: the intervals cover these trained models only",
        "Not compared",
        "images/s",
        f"{sweep}/comparison/comparison.html",
    ]:
        assert words in flat
    assert "not finite at step 31" in flat.replace(" the loss is ", " ") or "FloatingPointError" in flat
    assert max(map(len, shown.replace(str(sweep), "").splitlines())) <= columns
    for label in ("snr_gamma=5 lr=1e-3", "snr_gamma=1 lr=3e-4"):
        assert any(line.strip().startswith(label) for line in shown.splitlines())


def test_metric_keys_and_baseline_can_be_chosen(sweep, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    main([str(sweep), "--metric", "val/ema/snr_bin_3/eps", "--by", "snr_gamma", "--baseline", "snr_gamma=5"])
    shown = capsys.readouterr().out
    assert "val/ema/snr_bin_3/eps against snr_gamma=5" in shown
    assert "snr_gamma=1 is worse than snr_gamma=5" in shown
    assert "Runs of one variant differ in optimizer.lr (1e-3, 3e-4)" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metric", "train/loss"], "--metric train/loss can't be compared image by image; choose val/loss"),
        (
            ["--baseline", "snr_gamma=7"],
            "--baseline snr_gamma=7 matches none of:\n  snr_gamma=1 lr=3e-4",
        ),
        (["--step", "7"], "--step 7: no run was validated there; choose from 0, 100, 200"),
        (["--by", "gamma"], "--by gamma is in no run's configuration; the runs differ in loss.snr_gamma"),
    ],
)
def test_mistakes_end_in_a_clear_message(arguments, message, sweep):
    with pytest.raises(ConfigError) as error:
        main([str(sweep), *arguments])
    assert str(error.value).startswith(message)


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=f"^{tmp_path} holds no run"):
        main([str(tmp_path)])


def test_colours_and_brackets_of_a_name_reach_no_terminal(sweep, capsys):
    write_run(
        sweep / "x\x1b[31m", "loss.snr_gamma=5", state="failed", error="[bold]no[/bold] \x1b[31mred", validated=(0,)
    )
    write_run(sweep / "again", "loss.snr_gamma=5", "optimizer.lr=1e-3", code_revision="\x1b[31m")
    main([str(sweep)])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "[bold]no[/bold]" in "".join(shown.split())


@pytest.mark.slow
def test_the_whole_command_needs_no_torch(tmp_path):
    """As a process of its own: the page, the figures and the files, from the run folders alone."""
    for gamma, better in ((1, 0.0), (5, 0.1)):
        write_run(
            tmp_path / "sweep" / str(gamma),
            f"loss.snr_gamma={gamma}",
            better=better,
            averaged=False,
            timesteps=TIMESTEPS[:2],
        )
    code = "import sys; from t2i.compare import main; main(); print({'torch', 'diffusers', 'wandb'} & set(sys.modules))"
    command = [sys.executable, "-c", code, str(tmp_path / "sweep"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == [str(tmp_path / "out" / "comparison.html"), "set()"]
    names = {"comparison.html", "results.csv", "results.parquet"}
    names |= {f"{name}.png" for name in ("overview", "differences", "curves", "snr", "samples")}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names


def test_nothing_heavy_is_imported_at_the_start():
    code = "import sys, t2i.compare; print(sorted({'matplotlib', 'pyarrow', 'numpy', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
