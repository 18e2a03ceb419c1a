"""What may not be read is named: it is neither taken for absent nor for damaged."""

import numpy as np
import pytest
import torch
from helpers.rights import obeying_permissions
from helpers.synthetic import write_run

from t2i.cli import failing
from t2i.comparison.results import read_results
from t2i.inspection.run_list import last_step
from t2i.runs import checkpoints
from t2i.runs.errors_file import write_errors
from t2i.runs.files import listing, numbered
from t2i.runs.folder import read_info

DENIED = "Permission denied; change its owner or its permissions"


class Part:
    def state_dict(self):
        return {"weight": torch.ones(3)}

    def load_state_dict(self, state):
        pass


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "checkpoints"
    for step in (1, 2):
        checkpoints.save(folder, step, {"part": Part()}, keep="all")
    return folder


@pytest.fixture
def forbid():
    """Take the permission to read and write a file or folder, until the test has ended."""
    closed = []

    def close(path, mode=0o000):
        closed.append((path, path.stat().st_mode))
        path.chmod(mode)
        return path

    yield close
    for path, mode in reversed(closed):
        path.chmod(mode)


def explained(command):
    with obeying_permissions(), pytest.raises(Exception, match=r"denied|can't be read") as error:
        command()
    return failing.explain(error.value)


@pytest.mark.parametrize("name", ["", "step-000002", "step-000002/part.safetensors", "step-000002/manifest.json"])
def test_a_run_does_not_go_on_without_a_checkpoint_that_may_not_be_read(saved, forbid, name):
    path = forbid(saved / name)
    message = explained(lambda: checkpoints.resume(saved, {"part": Part()}))
    assert message.startswith(str(path))
    assert message.endswith(DENIED)
    path.chmod(0o700)
    assert checkpoints.resume(saved, {"part": Part()}) == 2


def test_a_closed_folder_is_not_an_empty_one(tmp_path, forbid):
    assert listing(tmp_path / "absent") == []
    assert numbered(tmp_path / "absent", "png") == {}
    (tmp_path / "closed").mkdir()
    folder = forbid(tmp_path / "closed")
    for look in (listing, lambda folder: numbered(folder, "png")):
        assert explained(lambda look=look: look(folder)) == f"{folder}: {DENIED}"


def test_a_file_that_may_not_be_written_is_named_by_its_own_name(tmp_path, forbid):
    """PyArrow's error names the temporary one, in a text."""
    folder = forbid(tmp_path, 0o555)
    write = lambda: write_errors(folder / "step-000001.parquet", "log_snr", np.zeros(2), {"": np.zeros((1, 2))})  # noqa: E731
    assert explained(write) == f"{folder / 'step-000001.parquet'}: {DENIED}"


def test_run_json_is_not_to_be_deleted_for_its_permissions(tmp_path, forbid):
    file = forbid(write_run(tmp_path / "run") / "run.json")
    assert explained(lambda: read_info(file.parent)).endswith("Permission denied); change its owner or its permissions")


@pytest.mark.parametrize("name", ["", "run.json", "config.yaml", "metrics.jsonl", "validation", "samples", "images"])
def test_other_runs_are_read(tmp_path, forbid, name):
    write_run(tmp_path / "good")
    closed = write_run(tmp_path / "closed", "seed=1")
    (closed / name).mkdir(exist_ok=True) if "." not in name else None
    forbid(closed / name)
    with obeying_permissions():
        bad, good = read_results([tmp_path])
    assert (good.state, bad.state) == ("finished", "unreadable")
    assert "Permission denied" in bad.reason


def test_the_list_of_runs_does_without_a_closed_folder_of_checkpoints(tmp_path, forbid):
    run = write_run(tmp_path / "run")
    (run / "checkpoints").mkdir(exist_ok=True)
    forbid(run / "checkpoints")
    with obeying_permissions():
        (found,) = read_results([tmp_path])
        assert last_step(found) == found.lines[-1]["step"]
