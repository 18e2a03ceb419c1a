"""Root may read and write everything; within `obeying_permissions`, the tests' process may not."""

import ctypes
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager

VERSION = 0x20080522  # of Linux's capget and capset, with two words of capabilities
OVERRIDE = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH


@contextmanager
def obeying_permissions() -> Generator[None]:
    """Within, permissions of files count for this thread, also if it is root's."""
    if os.getuid() or sys.platform != "linux":
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(VERSION, 0)
    words = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; and again for the upper 32
    _succeed(libc.capget(header, words))
    before = words[0]
    words[0] &= ~OVERRIDE
    _succeed(libc.capset(header, words))
    try:
        yield
    finally:
        words[0] = before
        _succeed(libc.capset(header, words))


def _succeed(status: int) -> None:
    if status:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
