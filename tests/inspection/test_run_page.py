"""The page of a run: of every state, of strangers, and of damaged ones."""

import json
import re

import pytest
from filelock import FileLock
from helpers.synthetic import add_batteries, write_run

from t2i.cli import show
from t2i.config import ConfigError
from t2i.inspection import pages, run_page
from t2i.inspection.run_figures import MOST_POINTS, points
from t2i.inspection.run_page import write_page
from t2i.inspection.run_samples import MOST_ROWS, samples_of, spread
from t2i.inspection.run_settings import changed
from t2i.runs.next_steps import next_steps

HOSTILE = "<script>alert(1)</script>"


def page_of(folder, **options):
    write_page(show.read(folder), file := folder.parent / "page.html", **options)
    return file.read_text()


@pytest.mark.slow
def test_a_finished_run_has_curves_samples_settings_and_what_to_type(tmp_path):
    run = add_batteries(write_run(tmp_path / "run", "optimizer.lr=0.001"), forgotten=0.1)
    (run / "model").mkdir()
    text = page_of(run)
    assert text.count('src="data:image/svg+xml') == 3  # train/loss, val/loss, ref/loss
    assert text.count('src="data:image/webp') == 2 + 3  # the latest two, and three steps
    assert "cat face" in text
    assert "t2i sample" in text
    assert "200 of 200" in text
    assert "refresh" not in text


def test_the_page_asks_for_nothing_and_runs_only_its_own_script(tmp_path):
    text = page_of(write_run(tmp_path / "run"))
    assert all(source.startswith("data:image/") for source in re.findall(r'(?:src|href)="([^"]*)"', text))
    assert "url(" not in text
    assert f"<script>{(pages.HERE / 'run.js').read_text()}</script>" in text
    assert "script-src &#39;sha256-" in text


def test_no_password_of_the_environment_is_on_the_page(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", secret := """hf_<&'"averysecretvalue""")
    run = write_run(tmp_path / "run", state="failed", error=f"no access with {secret}")
    (run / "train.log").write_text(f"token {secret}\n")
    text = page_of(run)
    assert "averysecretvalue" not in text
    assert text.count("[secret]") >= 2


def test_nothing_that_a_run_says_becomes_part_of_the_page(tmp_path):
    folder = tmp_path / "<img src=x onerror=alert(2)>"
    info = {"state": "failed", "error": f"{HOSTILE} \x1b[31m", "device": HOSTILE, "packages": {HOSTILE: HOSTILE}}
    prompts = f"samples.prompts=['{HOSTILE}', 'red apple']"
    run = write_run(folder, prompts, **info, choices={"loss": HOSTILE, HOSTILE: "x"})
    (run / "train.log").write_text(f"{HOSTILE}\x1b[2J\n")
    text = page_of(run)
    assert text.count("<script") == 1
    assert "<img src=x" not in text
    assert text.count("&lt;script&gt;") > 5
    assert all(character.isprintable() or character in "\n\t" for character in text)


@pytest.mark.parametrize("state", ["finished", "failed", "interrupted", "paused", "stopped", "killed", "never begun"])
def test_every_state_has_a_page_and_what_to_type(state, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_page, "charts", lambda *arguments: {})  # which take a second
    run = tmp_path / "multirun" / "mine"
    if state == "never begun":
        (run / ".hydra").mkdir(parents=True)
    else:
        written = "running" if state == "killed" else state  # nobody holds its lock
        write_run(run, "loss=mse", "samples.prompts=['a b','c']", state=written, sweep=None)
    show.main(["mine"])
    shown = capsys.readouterr().out
    assert shown.startswith(f"mine: {state}")
    assert (run / "run.html").is_file()
    if state not in ("finished", "never begun"):
        assert "t2i train loss=mse 'samples.prompts=['\"'\"'a b'\"'\"','\"'\"'c'\"'\"']' run=mine" in shown


def test_a_running_run_s_page_renews_itself_while_it_is_watched(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_page, "charts", lambda *arguments: {})
    run = write_run(tmp_path / "run", state="running", validated=(0,))
    seen = []

    def sleep(seconds):
        seen.append((run / "run.html").read_text())
        if len(seen) == 2:
            line = json.dumps({"step": 5, "train/loss": 0.25})
            with (run / "metrics.jsonl").open("a") as file:
                file.write(line + "\n")
        if len(seen) == 4:
            info = json.loads((run / "run.json").read_text())
            (run / "run.json").write_text(json.dumps(info | {"state": "finished"}))

    monkeypatch.setattr(show.time, "sleep", sleep)
    (run / ".lock").touch()
    with FileLock(run / ".lock"):
        show.main([str(run), "--watch", "--every", "3"])
    assert all('<meta http-equiv="refresh" content="3">' in page for page in seen)
    assert "5 of 200" in seen[2]
    assert "refresh" not in (run / "run.html").read_text()
    assert "run: finished" in capsys.readouterr().out


def test_damage_is_named_or_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(run_page, "charts", lambda *arguments: {})
    run = write_run(tmp_path / "run", validated=(0, 100))
    (run / "samples" / "step-000100.png").write_bytes(b"x")
    assert "step-000100.png can&#39;t be read" in page_of(run)
    (run / "run.json").write_text("{")
    assert "run.json can&#39;t be read" in page_of(run)


def test_a_sweep_s_folder_is_told_to_be_compared(tmp_path):
    write_run(tmp_path / "sweep" / "a")
    write_run(tmp_path / "sweep" / "b")
    with pytest.raises(ConfigError, match=r"holds runs \(2\).*`t2i compare .*sweep` compares them.*such as .*sweep/a"):
        show.main([str(tmp_path / "sweep")])


def test_nothing_is_written_through_a_stranger_s_link(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "run.html").symlink_to(tmp_path / "elsewhere.html")
    with pytest.raises(ConfigError, match="outside of"):
        show.main([str(run)])
    assert not (tmp_path / "elsewhere.html").exists()


def test_names_that_are_nearly_right_are_answered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "multirun" / "mine")
    with pytest.raises(ConfigError, match="did you mean multirun/mine"):
        show.main(["mien"])


def test_what_differs_from_the_defaults_comes_with_them(tmp_path):
    overrides = ["optimizer.lr=0.0007", "seed=3", "loss=mse"]
    run = show.read(write_run(tmp_path / "run", *overrides, choices={"loss": "mse", "optimizer": "adamw"}))
    found = {setting.key: (setting.value, setting.default) for setting in changed(run)}
    assert found["loss"] == ("mse", "minsnr")
    assert found["optimizer.lr"] == ("7e-4", "1e-3")
    assert found["seed"] == ("3", "0")
    assert "lr_scheduler.num_training_steps" not in found
    assert "run" not in found


def test_long_curves_are_thinned_to_their_means():
    lines = [{"step": step, "train/loss": float(step % 2)} for step in range(8000)]
    steps, values = points(lines, "train/loss")
    assert len(steps) == MOST_POINTS
    assert values.mean() == pytest.approx(0.5)
    assert set(values) == {0.5}
    steps, values = points([*lines[:3], {"step": 3, "train/loss": float("nan")}], "train/loss")
    assert steps.tolist() == [0, 1, 2]


def test_of_many_steps_with_samples_some_are_shown(tmp_path):
    assert spread(range(5)) == [0, 1, 2, 3, 4]
    chosen = spread(range(0, 10_000, 100))
    assert (len(chosen), chosen[0], chosen[-1]) == (MOST_ROWS, 0, 9900)
    run = write_run(tmp_path / "run", samples_since=0)
    found = samples_of(show.read(run))
    assert [step for step, _ in found.rows] == [100, 200]
    assert "earlier" in found.notes[0]


def test_a_stranger_s_command_is_quoted(tmp_path):
    steps = next_steps(tmp_path, "failed", {"overrides": ["x=1; rm -rf ~", 3, "run=other"]})
    assert steps[0].command.startswith("t2i train 'x=1; rm -rf ~' run=")


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1400])
def test_in_a_browser_it_stays_where_it_was(width, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    run, problems = write_run(tmp_path / "run"), []
    page_of(run, renewed=2)
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=options)
        tab = browser.new_page(viewport={"width": width, "height": 500})
        tab.on("console", lambda message: problems.append(message.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.goto((tmp_path / "page.html").as_uri())
        with tab.expect_event("load", timeout=10_000):  # it renews itself
            tab.evaluate("document.getElementById('latest').open = true; window.scrollTo(0, 400)")
        assert tab.evaluate("[scrollY, document.getElementById('latest').open]") == [400, True]
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        browser.close()
    assert problems == []
