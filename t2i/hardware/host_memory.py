"""How much memory this process has taken, and may still take: of the machine, and of its control groups."""

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

GROUPS = Path("/sys/fs/cgroup")
OF_PROCESS = Path("/proc/self/cgroup")
OWN_STATUS = Path("/proc/self/status")
# The files of a control group: its limit, what is in use, and in memory.stat the part of it that can be dropped.
VERSIONS = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def available_memory() -> int:
    """In bytes."""
    return min([psutil.virtual_memory().available, *_left_in_groups()])


def peak_memory() -> int:
    """The most that this process has held, in bytes; not what its parent held before it, which Linux also counts."""
    try:
        status = dict(line.split(":", 1) for line in OWN_STATUS.read_text().splitlines())
        return int(status["VmHWM"].removesuffix("kB")) * 1024
    except (OSError, KeyError, ValueError):  # no Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _left_in_groups() -> Iterator[int]:
    """What is left in each control group of this process, the nearest first; none where there are no such groups."""
    try:
        lines = [line.split(":", 2) for line in OF_PROCESS.read_text().splitlines()]
    except OSError:
        return
    for number, controllers, path in lines:
        version = 2 if number == "0" else 1 if "memory" in controllers.split(",") else None
        if version is None:
            continue
        root = GROUPS if version == 2 else GROUPS / "memory"
        own = root / path.strip("/")
        for folder in (own, *(parent for parent in own.parents if parent == root or root in parent.parents)):
            if (left := _left(folder, version)) is not None:
                yield left


def _left(folder: Path, version: int) -> int | None:
    limit_file, usage_file, cached = VERSIONS[version]
    try:
        limit, usage = (folder / limit_file).read_text().strip(), int((folder / usage_file).read_text())
        facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return None if limit == "max" else max(0, int(limit) - usage + int(facts.get(cached, 0)))
    except (OSError, ValueError):  # no such group is visible from within a container
        return None
