import json

import pytest

from t2i.runs.at_start import AtStart, at_start
from t2i.runs.parentage import Parent

INFO = {"precision": "fp32", "channels_last": True}


def begun(folder, info):
    (folder / "checkpoints").mkdir()
    (folder / "config.yaml").write_text("steps: 3\n")
    (folder / "run.json").write_text(json.dumps(info))
    return folder


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        (INFO, AtStart("fp32", True)),
        (INFO | {"channels_last": False}, AtStart("fp32", False)),
        ({"precision": "bf16_sr"}, AtStart("bf16_sr", False)),  # of a version that did not note the layout
        ({"state": "running"}, AtStart()),  # killed before anything was noted
    ],
)
def test_a_run_goes_on_as_it_began(tmp_path, info, expected):
    assert at_start(begun(tmp_path, info), None) == expected


@pytest.mark.parametrize(
    ("only", "expected"), [(None, AtStart(channels_last=True)), ("weights", AtStart()), ("ema", AtStart())]
)
def test_a_fork_with_all_of_the_state_has_the_layout_of_its_parent(tmp_path, only, expected):
    parent = Parent(asked="trunk@3", folder=tmp_path / "trunk", step=3, only=only, config={}, info=INFO)
    assert at_start(tmp_path, parent) == expected
    assert at_start(begun(tmp_path, INFO | {"channels_last": False}), parent) == AtStart("fp32", False)


def test_a_new_run_begins_with_nothing(tmp_path):
    assert at_start(tmp_path, None) == AtStart()
