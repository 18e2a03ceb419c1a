"""What is freed stays with the process."""

import subprocess
import sys

import pytest

FREED = """
import sys, torch
from t2i.training import memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

if "keep" in sys.argv:
    memory.keep_freed()
torch.ones(1)
before = resident()
tensor = torch.ones(2**25)
assert resident() - before > 1e8
del tensor
print(resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone is told")
@pytest.mark.parametrize(("arguments", "kept"), [((), 0), (("keep",), 2**27)])
def test_freed_tensors_leave_their_room_to_the_next(arguments, kept):
    left = subprocess.check_output([sys.executable, "-c", FREED, *arguments])
    assert int(left) == pytest.approx(kept, abs=2**23)
