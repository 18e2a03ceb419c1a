"""How the C library allocates tensors on a CPU."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # <malloc.h>
LARGEST = 2**31 - 1


def keep_freed() -> None:
    """Keep freed memory for the next tensor instead of returning it to the kernel (glibc only, by mallopt(3)).

    By default glibc maps every tensor above 32 MB anew and unmaps it when it is freed, so the kernel clears its pages
    in every step: a quarter of the time of a Stable Diffusion 1.5 step. Without glibc this does nothing.
    """
    if sys.platform.startswith("linux") and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)  # allocate everything on the heap
        libc.mallopt(M_TRIM_THRESHOLD, LARGEST)  # and never shrink it
