"""W&B's files, torn at every position where a crash can tear them."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import wandb
from helpers.trackers import run_info
from hypothesis import given
from hypothesis import strategies as st

from t2i.tracking import Wandb
from t2i.tracking.offline import BLOCK, FILE_HEADER, extent, mark_uploaded, records, repair, step_of

STEPS = range(0, 60, 3)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """The file of a run with a row every three steps, and with a record longer than a block."""
    folder = tmp_path_factory.mktemp("run")
    run = Wandb("t2i", "offline", 2)
    run.start(run_info(folder, config={"prompt": "so " * BLOCK}))
    for step in STEPS:
        run.log(step, {"train/loss": 1.0})
    run.finish(succeeded=True)
    wandb.teardown()  # waits for the process that writes the file
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    return file


@pytest.fixture(scope="module")
def data(file) -> bytes:
    return file.read_bytes()


def rows(data: bytes) -> list[int]:
    return [step_of(record.history) for _, record in records(data) if record.WhichOneof("record_type") == "history"]


def test_every_row_is_read_to_the_end_of_the_file(data):
    assert len(data) > 3 * BLOCK
    assert rows(data) == list(STEPS)
    assert [end for end, _ in records(data)][-1] == len(data)


def test_a_file_torn_anywhere_is_cut_after_its_last_complete_record(data):
    ends = [FILE_HEADER, *(end for end, _ in records(data))]
    for before, after in pairwise(ends[-8:]):
        for length in range(before, after):
            end, last = extent(data[:length], last_step=1000)
            assert end == before
            assert last == (rows(data[:end]) or [-1])[-1]


@given(st.integers(0, 7))
def test_a_file_torn_in_its_header_has_nothing(data, length):
    assert extent(data[:length], last_step=1000) == (length, -1)


@given(st.data())
def test_nothing_is_read_after_a_damaged_byte(data, draw):
    position = draw.draw(st.integers(len(data) - 4000, len(data) - 1))
    damaged = data[:position] + bytes([data[position] ^ draw.draw(st.integers(1, 255))]) + data[position + 1 :]
    end, _ = extent(damaged, last_step=1000)
    assert end <= position
    assert rows(damaged) == rows(data[:position])


@given(st.integers(-1, max(STEPS) + 5))
def test_rows_of_later_steps_are_cut_and_no_others(data, last_step):
    end, last = extent(data, last_step)
    kept = [step for step in STEPS if step <= last_step]
    assert rows(data[:end]) == kept
    assert last == (kept or [-1])[-1]
    summaries = [record.summary for _, record in records(data[:end]) if record.WhichOneof("record_type") == "summary"]
    steps = [int(item.value_json) for one in summaries for item in one.update if list(item.nested_key) == ["step"]]
    assert steps == kept


def test_wandb_reads_what_was_cut(file, data, tmp_path):
    run_id = file.stem.removeprefix("run-")
    copy = tmp_path / f"offline-run-1-{run_id}" / file.name
    copy.parent.mkdir()
    copy.write_bytes(data[:-700])
    assert repair(tmp_path, run_id, last_step=30) == 30
    command = [Path(sys.executable).parent / "wandb", "leet", "inspect", "--json", copy]
    output = subprocess.run(command, capture_output=True, text=True, check=True)
    assert output.stdout.count('"type":"history"') == len(range(0, 33, 3))
    assert "error" not in output.stderr.lower()


def test_a_file_without_a_row_is_removed(file, data, tmp_path):
    """`wandb sync` would stop there and never upload the files of the resumed run."""
    run_id = file.stem.removeprefix("run-")
    for part, content in (("offline-run-1", data[:FILE_HEADER]), ("offline-run-2", data), ("run-3", data)):
        (tmp_path / f"{part}-{run_id}").mkdir()
        (tmp_path / f"{part}-{run_id}" / file.name).write_bytes(content)
    assert repair(tmp_path, run_id, last_step=-1) == max(STEPS)  # files that were written online are uploaded
    assert os.listdir(tmp_path) == [f"run-3-{run_id}"]


def test_a_run_that_was_continued_within_a_second_is_found_completely(file, data, tmp_path):
    """W&B then adds a number to the name of the second folder."""
    run_id = file.stem.removeprefix("run-")
    both = [tmp_path / f"offline-run-1-{run_id}{number}" / file.name for number in ("", "-1")]
    for each in both:
        each.parent.mkdir()
        each.write_bytes(data)
    assert repair(tmp_path, run_id, last_step=30) == 30
    assert [rows(each.read_bytes())[-1] for each in both] == [30, 30]
    mark_uploaded(tmp_path, run_id)
    assert all(each.with_suffix(".wandb.synced").exists() for each in both)
