"""A run that is killed at seeded moments and started again until it finishes does not differ from one left alone."""

import json
import multiprocessing
import random
import signal

import pytest
import torch
from helpers.dying import train_and_die
from helpers.runs import untimed

from t2i.runs import checkpoints

MOMENTS = [  # module, function, how often it is called in 40 steps, about
    ("t2i.training.step", "squared_error", 40),
    ("t2i.evaluation.battery", "summary", 8),
    ("t2i.runs.checkpoints", "_write", 40),
    ("t2i.runs.records", "sync", 60),
    ("t2i.runs.folder", "atomic_write", 10),
    ("t2i.runs.checkpoints", "size_of", 100),
]
SETTINGS = ["steps=40", "save_every=3", "validate_every=10", "validation.items=2", "sample_every=0", "log_every=2"]
SETTINGS += ["batch_size=4", "micro_batch_size=2"]


def finish(folder, overrides, moments, spoil=lambda folder: None) -> int:
    """Start the run until it finishes; returns how often it was killed."""
    context = multiprocessing.get_context("fork")
    for killed, moment in enumerate([*moments, ("t2i.runs.folder", "flat", 10**9, signal.SIGKILL)]):
        process = context.Process(target=train_and_die, args=(folder, overrides, *moment))
        process.start()
        process.join()
        if process.exitcode == 0:
            return killed
        spoil(folder)
    raise AssertionError(f"it never finished: {process.exitcode}")


def left_by(folder):
    """The weights of the last checkpoint, and all metrics but timings."""
    state = {}
    for name in ("denoiser", "ema"):
        part = checkpoints.safetensors.torch.load_file(folder / "checkpoints/step-000040" / f"{name}.safetensors")
        state |= {f"{name}.{key}": value for key, value in part.items()}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = untimed(lines)
    return state, metrics


def same(first, second):
    return first[1] == second[1] and all(torch.equal(first[0][key], second[0][key]) for key in first[0] | second[0])


@pytest.fixture(scope="module")
def overrides(small):
    return [*small, *SETTINGS]


@pytest.fixture(scope="module")
def undisturbed(overrides, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert finish(folder, overrides, []) == 0
    return left_by(folder)


def seeded_moments(signum):
    chosen = random.Random(0)
    places = [chosen.choice(MOMENTS) for _ in range(20)]
    # Early calls: a run that is killed late each time would be done after a few.
    return [(module, function, 1 + chosen.randrange(max(1, often // 8)), signum) for module, function, often in places]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "background"), [(signal.SIGKILL, False), (signal.SIGKILL, True), (signal.SIGTERM, True)]
)
def test_killed_at_twenty_moments_it_ends_with_the_same_bits(overrides, undisturbed, tmp_path, signum, background):
    saving = f"save_in_background={str(background).lower()}"
    killed = finish(tmp_path / "run", [*overrides, saving], seeded_moments(signum))
    assert killed >= (20 if signum == signal.SIGKILL else 10)  # SIGTERM lets the step end, so the run gets on
    assert same(left_by(tmp_path / "run"), undisturbed)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["truncated", "flipped", "missing"])
def test_damaged_checkpoints_are_passed_over_and_the_bits_are_the_same(overrides, undisturbed, tmp_path, how):
    chosen = random.Random(how)

    def spoil(folder):
        newest = max((folder / "checkpoints").glob("step-*"), default=None)
        if newest is not None:
            file = chosen.choice(sorted(newest.iterdir()))
            content = file.read_bytes()
            changed = {"truncated": content[: len(content) // 2], "flipped": content[:-1] + bytes([content[-1] ^ 1])}
            file.unlink() if how == "missing" else file.write_bytes(changed[how])

    moments = [("t2i.training.step", "squared_error", steps, signal.SIGKILL) for steps in (18, 20, 16)]
    assert finish(tmp_path / "run", overrides, moments, spoil) == 3
    assert same(left_by(tmp_path / "run"), undisturbed)
