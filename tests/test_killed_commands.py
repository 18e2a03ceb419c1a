"""Commands that are killed at any moment, or started twice at once: the same command again leaves what one alone does.

T2I_KILLS=15 sets the number of moments, which are spread over all changes of the file system and requests to the Hub.
"""

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
from helpers import hub_server
from helpers.damage import contents
from helpers.dying import audited, finish, start, train_and_die
from helpers.runs import compose

from t2i import average, evaluate, push
from t2i.experiment import run as experiment
from t2i.experiment.plan import make_plan
from t2i.runs.files import LEFTOVER
from t2i.sampling.pipelines import load_pipeline

pytestmark = [pytest.mark.slow, pytest.mark.long]

KILLS = int(os.environ.get("T2I_KILLS", "15"))
SETTINGS = ["steps=20", "save_every=20", "validate_every=20", "sample_every=20", "log_every=20", "samples.steps=1"]
SETTINGS += ["batch_size=2", "micro_batch_size=2", "validation.items=2", "samples.prompts=[red apple]"]
SETTINGS += ["ema=post_hoc", "ema.snapshots=16"]
EVALUATION = ["evaluation.items=2", "evaluation.steps=1", "metric=[nearest_reference]"]


@pytest.fixture(scope="module")
def done(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("killed") / "run", *SETTINGS).folder


def moments(changes: int, number: int = KILLS) -> list[int]:
    """Some of the moments before the first change, between two of them, and before the last, evenly spread."""
    return sorted({round(i * (changes - 1) / max(number - 1, 1)) for i in range(number)})


def left(folder: Path) -> dict[str, str]:
    """What is left in a folder, without what is removed an hour later."""
    return {name: digest for name, digest in contents(folder).items() if not LEFTOVER.fullmatch(Path(name).name)}


def killed_everywhere(command, prepare, folder, outcome, whole=lambda: None):
    """outcome: what is to be the same at the end. whole: a folder that is complete whenever it is there."""
    prepare()
    changes = finish(command, folder)
    assert isinstance(changes, int), changes
    expected, complete = outcome(), whole() and contents(whole())
    for moment in moments(changes):
        prepare()
        where = f"killed at {moment} of {changes}"
        assert finish(command, folder, moment) is None, where
        if complete and whole().exists():
            assert contents(whole()) == complete, f"{where}, a part is taken for the whole"
        again = finish(command, folder)
        done_before = complete and whole().exists() and again == f"{whole()} exists; --export writes a new folder"
        assert isinstance(again, int) or done_before, f"{where}, it ends with: {again}"
        assert outcome() == expected, f"{where}, other files are left"


def twice(commands, folder):
    """Start commands at once; what each ends with."""
    started = [start(command, folder) for command in commands]
    for process, _ in started:
        process.join(300)
        assert process.exitcode == 0
    return [result.get(timeout=10) for _, result in started]


# --- export ----------------------------------------------------------------------------------------------------------


def test_a_run_that_is_killed_while_it_exports(small, tmp_path):
    overrides = [*small, *SETTINGS]
    before, folder = tmp_path / "before", tmp_path / "run"
    process = multiprocessing.get_context("fork").Process(
        target=train_and_die, args=(before, overrides, "t2i.experiment.run", "_finish", 1, signal.SIGKILL)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL

    def prepare():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(before, folder)

    def go_on():
        cfg = compose(*overrides)
        plan = make_plan(cfg)
        with audited(experiment, "_finish"):  # what is before has tests of its own
            experiment.run(cfg, plan, folder, overrides)

    def outcome():
        files = left(folder)
        model = {name: digest for name, digest in files.items() if name.startswith("model/")}
        return model, sorted(files), json.loads((folder / "run.json").read_text())["state"]

    killed_everywhere(go_on, prepare, folder, outcome, lambda: folder / "model")


def test_an_export_of_averages(done, tmp_path):
    target = tmp_path / "models" / "average"
    arguments = [str(done), "--length", "0.2", "--export", str(target), "--out", str(tmp_path / "out")]

    def prepare():
        shutil.rmtree(target.parent, ignore_errors=True)
        target.parent.mkdir()

    killed_everywhere(
        lambda: average.main(arguments), prepare, target.parent, lambda: left(target.parent), lambda: target
    )
    expected = left(target.parent)
    prepare()
    ends = twice([lambda: average.main(arguments)] * 2, target.parent)
    assert [end for end in ends if isinstance(end, int)]
    assert all(isinstance(end, int) or end.startswith(f"{target} ") for end in ends), ends
    assert left(target.parent) == expected
    load_pipeline(target)


# --- push ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    with hub_server.asked_instead(monkeypatch) as hub:
        yield hub


def test_a_push(done, hub, tmp_path):
    folder = tmp_path / "run"

    def prepare():
        hub.repositories.clear()
        hub.objects.clear()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(done, folder)

    def outcome():
        files = left(folder)
        there = hub.repositories["tester/mine"]
        assert {name: (folder / "model" / name).read_bytes() for name in there} == there
        return (
            {name: files[name] for name in files if name != "run.json"},
            sorted(there),
            json.loads((folder / "run.json").read_text())["pushed"],
        )

    def command():
        push.main([str(folder), "--repo", "mine"])

    killed_everywhere(command, prepare, folder, outcome)
    expected = outcome()
    prepare()
    assert all(isinstance(end, int) for end in twice([command] * 2, folder))
    assert outcome() == expected


# --- evaluate --------------------------------------------------------------------------------------------------------


def test_an_evaluation(done, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    monkeypatch.chdir(tmp_path)

    def prepare():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(done, folder)

    def command():
        evaluate.main([str(folder), *EVALUATION])

    killed_everywhere(command, prepare, folder, lambda: left(folder))
    expected = left(folder)
    prepare()
    assert all(isinstance(end, int) for end in twice([command] * 2, folder))
    assert left(folder) == expected
