"""The commands that read what runs left behind survive any damage, or name it: runs, show, judge, evaluate, and forks.

The number of cases is set as for tests/test_damaged_state.py.
"""

import json
import os
import shutil
import signal
from contextlib import contextmanager

import pytest
from helpers.damage import CASES, attempt, contents, damage, fuzz, remove, vouch
from helpers.runs import compose

from t2i import evaluate, judge
from t2i.cli import runs as runs_command
from t2i.cli import show as show_command
from t2i.config.checks import check
from t2i.config.instantiate import resolve, resolve_once
from t2i.config.keys import flat
from t2i.experiment.plan import make_plan
from t2i.experiment.run import run
from t2i.judging.contestants import read_contest
from t2i.judging.session import Session
from t2i.runs.inheritance import as_parent, with_parents
from t2i.runs.judgements import NAME, Judgements

pytestmark = pytest.mark.slow

SETTINGS = ["save_every=1", "validate_every=1", "sample_every=2", "log_every=1", "samples.steps=1", "sweep=s"]
SETTINGS += ["batch_size=2", "micro_batch_size=2", "validation.items=2", "samples.prompts=[red apple]", "seed=0"]
SETTINGS += ["evaluate_every=2", "evaluation.items=2", "evaluation.steps=1", "metric=[nearest_reference]"]
SETTINGS += ["keep_checkpoints=all", "model.adapters=null", "loss=minsnr"]
RUNS = {
    "pair/finished": ["steps=2", "loss.snr_gamma=1"],
    "pair/intact": ["steps=2", "loss.snr_gamma=5"],
    "forked": ["steps=3", "loss.snr_gamma=1", "from.run={sweep}/pair/finished@1"],
    "begun": ["steps=4", "loss.snr_gamma=1", "from.run={sweep}/forked@2", "stop_at=3"],
}
LONGEST = 600  # seconds of a case
RACE = {"summary": ["Best: snr_gamma=1."], "winner": "snr_gamma=1", "left": ["snr_gamma=1"], "rules": {"version": 2}}


def overrides_of(name, sweep, small):
    return [*small, *SETTINGS, *(text.format(sweep=sweep) for text in RUNS[name])]


def go_on(folder, overrides):
    """What `t2i train` does with these overrides, in this process."""
    complete = with_parents(overrides)
    cfg = resolve_once(compose(*complete))
    as_parent(cfg, lambda of_parent: flat(resolve(compose(*of_parent))))
    check(cfg, num_processes=1)
    run(cfg, make_plan(cfg), folder, complete)


@pytest.fixture(scope="module")
def sweep(small, tmp_path_factory):
    """Two finished runs with images that people voted on, a fork of one, and a fork of the fork that is paused."""
    folder = tmp_path_factory.mktemp("read") / "sweep"
    for name in RUNS:
        go_on(folder / name, overrides_of(name, folder, small))
    pair = folder / "pair"
    (pair / "race.json").write_text(json.dumps(RACE))
    session = Session(read_contest([pair]), Judgements(pair), 0, 10)
    for judge_of in ("anna", "ben"):
        while pairs := session.state(judge_of)["pairs"]:
            session.vote(judge_of, pairs[0]["id"], "left")
    (pair / ".judgements.lock").unlink(missing_ok=True)
    return folder


def state_files(folder):
    """Of the runs finished, forked and begun, but for the exported model, and the sweep's own files."""
    names = [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file()]
    kept = [
        name for name in names if not name.startswith("pair/intact") and "/model/" not in name and ".lock" not in name
    ]
    often = ("run.json", "config.yaml", "metrics.jsonl", "index.json", NAME, "race.json", "manifest.json")
    few = [name for name in kept if name.endswith(often)]
    images = [name for name in kept if "/images/" in name or "/samples/" in name]
    return [*few * 3, *images, *kept]


def copied(sweep, to):
    """A copy; large files, which no command may write to, have a second name there."""

    def copy(source, target):
        (os.link if os.path.getsize(source) > 100_000 else shutil.copyfile)(source, target)

    remove(to)
    shutil.copytree(sweep, to, copy_function=copy)
    return to


@contextmanager
def limited():
    """Within, what takes too long fails."""

    def late(*_):
        raise AssertionError(f"it took more than {LONGEST} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LONGEST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def lists(here, name, scratch, small):
    attempt(lambda: runs_command.main([str(here)]))
    attempt(lambda: runs_command.main([str(here), "--json"]))
    return []


def shows(here, name, scratch, small):
    for run_of in {"pair/finished", name} - {"pair"}:
        attempt(lambda run_of=run_of: show_command.main([str(here / run_of), "--out", str(scratch / "page.html")]))
    return []


def judges(here, name, scratch, small):
    """Preparation, some pages and votes, and what the votes say."""

    def serve(paths):
        session = Session(read_contest(paths), Judgements(paths[0]), 1, 10)
        state = session.state("anna")
        for pair in state["pairs"]:
            for side in ("left", "right"):
                assert session.png(pair[side])
        for pair in state["pairs"]:
            session.vote("anna", pair["id"], "right")
        session.undo("anna")

    votes = here / "pair" / NAME
    before = votes.read_bytes() if votes.is_file() else b""
    attempt(lambda: judge.main([str(here / "pair"), "--results"]))
    attempt(lambda: serve([here / "pair"]))
    assert votes.is_dir() or votes.read_bytes().startswith(before)
    attempt(lambda: judge.main([str(here / "pair"), "--results"]))
    folders = sorted(here.glob("pair/*/images/*/step-000002"))
    attempt(lambda: serve(folders))
    return [f"pair/{NAME}", "pair/finished/images", "pair/intact/images"]


def evaluates(here, name, scratch, small):
    for source in {"pair/finished", name} - {"pair"}:
        attempt(lambda source=source: evaluate.main([str(here / source), str(here / "pair/intact")]))
    for folder in here.glob("pair/finished/images/*/step-*"):
        attempt(lambda folder=folder: evaluate.main([str(here / "pair/intact"), str(folder)]))
    return [f"{name}/images/", f"{name}/.cache", "pair/finished/images/"]


def forks(here, name, scratch, small):
    """A new run that begins with a damaged one, and one that began with it and goes on."""
    new = ["steps=4", "sample_every=0", "evaluate_every=0", "stop_at=3"]
    for source in {"forked", name} - {"pair"}:
        shutil.rmtree(scratch / "new", ignore_errors=True)
        attempt(lambda source=source: go_on(scratch / "new", [f"from={here / source}@2", *new]))
    attempt(lambda: go_on(here / "begun", overrides_of("begun", here, small)[:-1]))
    return ["begun/"]


def deletes(here, name, scratch, small):
    """Failed runs only: here, none has failed but by its damaged run.json."""
    attempt(lambda: runs_command.main([str(here), "--delete-failed", "--yes"]))
    return [f"{name}/"]


COMMANDS = {lists: 4, shows: 2, judges: 4, evaluates: 1, forks: 1, deletes: 3}  # the cases of CI


def check_case(command, sweep, small, scratch, name, mutate):
    remove(scratch)
    here = copied(sweep, scratch / "sweep")
    for file in here.glob("**/run.json"):  # where the runs are by now
        file.write_text(file.read_text().replace(str(sweep), str(here)))
    for file in here.glob("**/config.yaml"):
        file.write_text(file.read_text().replace(str(sweep), str(here)))
    content = mutate(name, (here / name).read_bytes())
    damage(here / name, content)
    if name.endswith((".safetensors", ".pt")) and isinstance(content, bytes) and len(content) % 2:
        vouch(here / name)  # the checksums don't reveal it
    damaged = next((run_of for run_of in RUNS if name.startswith(f"{run_of}/")), "pair")
    before = contents(here)
    with limited():
        may_change = tuple(command(here, damaged, scratch, small))
    after = contents(here)
    for file, digest in before.items():
        if not (may_change and file.startswith(may_change)):
            assert after.get(file) == digest, f"{command.__name__} changed {file}"
    assert {file for file in after.keys() - before.keys() if not file.startswith(may_change or "//")} == set()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_commands_survive_any_damage_or_name_it(command, sweep, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def check_one(name, mutate, chance):
        check_case(command, sweep, small, tmp_path / "scratch", name, mutate)

    with monkeypatch.context() as patch:  # without damage, all of it succeeds
        patch.setitem(globals(), "attempt", lambda command: command())
        check_one("pair/race.json", lambda name, before: before, 0)
    fuzz(CASES or COMMANDS[command], state_files(sweep), check_one)
