"""A full disk: whatever writes says where space is needed."""

import errno
from pathlib import Path

import pytest
from safetensors import SafetensorError

from t2i.config import ConfigError
from t2i.runs.full_disk import naming


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_the_error_of_a_full_disk_gets_a_name(error):
    with pytest.raises(OSError, match=r"(No space left|quota).*: 'here'"), naming(Path("here")):
        raise error


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full", "there"), ConnectionError("no"), ValueError("No"), ConfigError("No space")]
)
def test_every_other_error_is_left_as_it_is(error):
    with pytest.raises(type(error)) as caught, naming(Path("here")):
        raise error
    assert caught.value is error
    assert getattr(error, "filename", None) in (None, "there")
