"""A full disk, of which the system tells without naming the file."""

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from t2i.config import ConfigError

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def naming(path: Path) -> Generator[None]:
    """Within, the error of a full disk becomes an OSError that names the file or folder `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL and error.filename is None:
            error.filename = str(path)
        raise
    except ConfigError:
        raise
    except Exception as error:  # safetensors has an error of its own
        number = next((number for number in FULL if os.strerror(number) in str(error)), None)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error
