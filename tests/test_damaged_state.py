"""Every file that a run or a sweep leaves behind may be damaged: commands succeed, or name the file in one line.

T2I_FUZZ=5000 sets the number of cases of the fuzz test, which are the same every time unless it is set;
T2I_FUZZ_SECONDS=180 ends it after that time, with the cases done so far.
"""

import hashlib
import json
import os
import shutil
import time
import traceback
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from helpers.runs import compose
from hydra.types import RunMode
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig

from t2i import compare
from t2i.cli import failing
from t2i.comparison import html_report
from t2i.config.compose import CONF
from t2i.experiment.run import run
from t2i.plan import make_plan
from t2i.sampling.pipelines import load_pipeline
from t2i.sweeps.job import Job
from t2i.sweeps.manifest import Guard, write_manifest
from t2i.sweeps.process import JobProcess

CASES = int(os.environ.get("T2I_FUZZ", "0"))
SECONDS = float(os.environ.get("T2I_FUZZ_SECONDS", "inf"))
SETTINGS = ["steps=2", "save_every=1", "validate_every=1", "sample_every=2", "log_every=1", "samples.steps=1"]
SETTINGS += ["batch_size=2", "micro_batch_size=2", "validation.items=2", "sweep=s", "samples.prompts=[red apple]"]
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


# --- content ---------------------------------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**30, 10**400, -1.5, 1e300, float("nan"), float("inf")]),
    st.sampled_from(
        ["", "finished", "running", "paused", "\x1b[2J", "a\nb", "\ud800", "${oc.env:HOME}", "../../x", "=1+1"]
    ),
    st.text(max_size=4),
)
VALUES = st.recursive(
    SCALARS,
    lambda children: st.lists(children, max_size=2) | st.dictionaries(st.text(max_size=3), children, max_size=2),
    max_leaves=4,
)
WHOLE = st.one_of(
    st.sampled_from([b"", b"[]", b"{}", b"null", b"3", b'"text"', b"\0" * 64, b"\xff\xfe{\0}\0", b"{", b"- 1\n- 2"]),
    st.sampled_from(
        [b"[" * 200_000, b'{"a":' * 200_000, b"a: " * 2000, b"&a [*a, *a]", b"!!python/object:os.system {}"]
    ),
    st.binary(max_size=64),
    VALUES.map(lambda value: json.dumps(value).encode()),
)


@st.composite
def mutations(draw):
    """A function of a file's content that returns other content; None stands for a folder in the file's place."""
    kind = draw(
        st.sampled_from(["whole", "truncated", "flipped", "padded", "inserted", "field", "field", "field", "folder"])
    )
    where, bits, content, value = draw(st.floats(0, 1)), draw(st.integers(1, 255)), draw(WHOLE), draw(VALUES)
    picks = draw(st.lists(st.integers(0, 1000), min_size=6, max_size=6))

    def mutate(name: str, before: bytes) -> bytes | None:
        at = min(int(where * len(before)), max(len(before) - 1, 0))
        if kind == "folder":
            return None
        if kind == "field" and name.endswith((".json", ".yaml", ".jsonl")):
            return with_other_field(name, before, value, picks)
        return {
            "truncated": before[:at],
            "flipped": before[:at] + bytes([before[at] ^ bits]) + before[at + 1 :] if before else b"",
            "padded": before[:at] + bytes(len(before) - at),
            "inserted": before[:at] + content[:100] + before[at:],
        }.get(kind, content)

    mutate.__name__ = kind
    return mutate


def with_other_field(name, before, value, picks):
    """The file with another value at a place that `picks` leads to."""
    if name.endswith(".jsonl"):
        lines = before.split(b"\n")
        i = picks[0] % max(1, len(lines) - 1)
        lines[i] = with_other_field("line.json", lines[i], value, picks[1:])
        return b"\n".join(lines)
    tree = yaml.safe_load(before) if name.endswith(".yaml") else json.loads(before)
    node, key = {"root": tree}, "root"
    for pick in picks:
        child = node[key]
        keys = list(child) if isinstance(child, dict) else list(range(len(child))) if isinstance(child, list) else []
        if not keys or (pick > 900 and child is not tree):
            break
        node, key = child, keys[pick % len(keys)]
    node[key] = value
    if name.endswith(".yaml"):
        return yaml.safe_dump(tree, allow_unicode=False).encode("utf-8", "backslashreplace")
    return json.dumps(tree).encode()


def state_files(folder: Path) -> list[str]:
    """The files of the runs `finished` and `half`, but for the exported model, and sweep.json."""
    names = [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file()]
    kept = [name for name in names if not name.startswith("intact") and "/model/" not in name and ".lock" not in name]
    # Small files of many fields come often, each of the large ones now and then.
    often = [name for name in kept if name.endswith(("run.json", "config.yaml", "metrics.jsonl", "sweep.json"))]
    return [*often * 3, *kept]


# --- commands --------------------------------------------------------------------------------------------------------


def attempt(command) -> bool:
    """Whether the command succeeded; another error than those that are told in a single line is raised."""
    try:
        command()
    except Exception as error:
        if (message := failing.explain(error)) is None or len(message.split("\n  ")[0].split("\n")) > 1:
            raise
        return False
    return True


def contents(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file() and ".lock" not in file.name)
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def damage(file: Path, content: bytes | None) -> None:
    file.unlink()
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)


@cache
def configuration(small: tuple[str, ...], name: str) -> DictConfig:
    return compose(*small, *SETTINGS, *RUNS[name])


def check(sweep: Path, small: tuple[str, ...], scratch: Path, name: str, mutate) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(sweep, scratch / "sweep")
    here = scratch / "sweep"
    content = mutate(name, (here / name).read_bytes())
    damage(here / name, content)
    if name == "sweep.json":
        config = multirun()
        config.hydra.sweep.dir = str(here)
        with suppress(SystemExit):
            Guard().on_multirun_start(config)
        return
    damaged, part = name.split("/", 1)
    folder = here / damaged
    if name.endswith((".safetensors", ".pt")) and content is not None and len(content) % 2:
        vouch(folder / part)  # the checksums don't reveal it
    before = contents(here)
    job = Job(folder, [], 2, 1, 0, state="running")
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


def damage_again(file: Path, content: bytes | None) -> None:
    """The sweep has noted the end of the job, in run.json at most."""
    if file.name == "run.json":
        shutil.rmtree(file) if file.is_dir() else file.unlink()
        file.mkdir() if content is None else file.write_bytes(content)


def vouch(part: Path) -> None:
    """Make the manifest agree with the damaged part of a checkpoint."""
    file = part.parent / "manifest.json"
    manifest = json.loads(file.read_text())
    content = part.read_bytes()
    manifest["files"][part.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    file.write_text(json.dumps(manifest))


def fuzz(cases, sweep, small, scratch):
    files, small, failures, done = state_files(sweep), tuple(small), dict[str, str](), []
    began = time.monotonic()

    @settings(
        max_examples=cases,
        deadline=None,
        derandomize=not CASES,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(st.sampled_from(files), mutations(), st.integers(0, 9))
    def one(name, mutate, chance):
        if time.monotonic() - began > SECONDS:
            return
        with pytest.MonkeyPatch.context() as patch:
            if chance or cases < 100:  # the page takes seconds, and shows what the tables show
                patch.setattr(html_report, "write_page", lambda *arguments: None)
            try:
                check(sweep, small, scratch, name, mutate)
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                text = "".join(traceback.format_exception(error))[-3000:]
                failures[f"{type(error)} {last.filename} {last.lineno}"] = f"{name}, {mutate.__name__}: {text}"
        done.append(name)

    one()
    print(f"FUZZ: {len(done)} cases in {time.monotonic() - began:.0f} s, {len(failures)} kinds of failure")
    assert not failures, "\n\n".join(failures.values())


def test_any_damage_is_survived_or_named(sweep, small, tmp_path):
    fuzz(CASES or 60, sweep, small, tmp_path / "scratch")


@pytest.mark.slow
def test_any_damage_is_survived_or_named_in_more_cases(sweep, small, tmp_path):
    fuzz(200, sweep, small, tmp_path / "scratch")
