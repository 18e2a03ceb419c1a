"""What the user reads when memory ends while weights are read."""

import errno
import subprocess
import sys

import pytest
import torch

from t2i.config import ConfigError
from t2i.models.loading import loading, locate


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried 8"),
        RuntimeError("unable to mmap 5000 bytes from file <model.safetensors>: Cannot allocate memory (12)"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        OSError("Cannot allocate memory (os error 12)"),
        caused(OSError("Unable to load weights from checkpoint file"), ValueError("Cannot allocate memory")),
        caused(OSError("Unable to load weights"), caused(ValueError("not a file"), MemoryError())),
    ],
    ids=str,
)
def test_memory_that_ends_is_not_blamed_on_the_path(error):
    message = r"^out of memory while the weights of tiny were read .* a smaller model"
    with pytest.raises(ConfigError, match=message), loading("tiny"):
        raise error


def test_a_full_gpu_and_other_errors_stay_what_they_are():
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: something else")):
        with pytest.raises(type(error), match=str(error)), loading("tiny"):
            raise error
    with pytest.raises(ConfigError, match=r"^model.path=tiny can't be loaded: no such file"), loading("tiny"):
        raise OSError("no such file")


def test_the_home_folder_can_be_written_as_a_tilde(small_pipeline, monkeypatch):
    monkeypatch.setenv("HOME", str(small_pipeline.parent))
    assert locate(f"~/{small_pipeline.name}") == str(small_pipeline)


def test_a_home_of_nobody_is_named():
    with pytest.raises(ConfigError, match=r"^model.path=~nosuch/x: Could not determine home directory"):
        locate("~nosuch/x")


PROGRAM = """
import gc, resource, sys
import torch
from diffusers import UNet2DConditionModel
from t2i.config import ConfigError
from t2i.models.stable_diffusion import load
torch.set_num_threads(1)
load("tiny").pipeline(None)  # what is imported on the way
model = load("tiny")
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]), resource.RLIM_INFINITY))
try:
    model.denoiser
except ConfigError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
@pytest.mark.slow
@pytest.mark.long
def test_memory_ends_in_earnest():
    for room in (0, 2**20, 2**22):
        done = subprocess.run([sys.executable, "-c", PROGRAM, str(room)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("out of memory while the weights of"), done.stdout
