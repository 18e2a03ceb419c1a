"""Failures whose remedy is a setting: memory of every kind, operations that are missing, what can't be compiled."""

import errno
import json

import pytest
import torch

from t2i.config import ConfigError
from t2i.config.out_of_memory import REMEDIES, lacking
from t2i.experiment.failures import failures_noted, remedied
from t2i.runs.checkpoints import NotSaved


class AcceleratorError(RuntimeError):
    """As torch raises it where a GPU is; it needs CUDA to be made."""


def behind(error):
    outer = ValueError("the batch could not be made")
    outer.__cause__ = error
    return outer


LACKS = [
    (
        "gpu",
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity"),
    ),
    ("gpu", AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported")),
    ("gpu", RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")),
    ("gpu", RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`")),
    ("gpu", RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")),
    ("gpu", RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED")),
    ("gpu", RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED")),
    ("gpu", RuntimeError("NCCL error: unhandled cuda error. Last error: Cuda failure 2 'out of memory'")),
    ("gpu", RuntimeError("HIP out of memory. Tried to allocate 20.00 MiB")),
    ("gpu", RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)")),
    ("host", RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried")),
    ("host", MemoryError()),
    ("host", MemoryError("Unable to allocate 3.00 GiB for an array with shape (805306368,) and data type float32")),
    ("host", OSError(errno.ENOMEM, "Cannot allocate memory")),
    ("host", behind(MemoryError())),
    ("loader", RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")),
    ("loader", MemoryError("Caught MemoryError in DataLoader worker process 0.\nOriginal Traceback:\nMemoryError")),
    (
        "loader",
        RuntimeError(
            "Caught _ArrayMemoryError in DataLoader worker process 1.\nOriginal Traceback (most recent call last):\n"
            "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 4 GiB"
        ),
    ),
    (
        "shared",
        RuntimeError(
            "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are "
            "out of shared memory. Please try to raise your shared memory limit."
        ),
    ),
    ("shared", RuntimeError("unable to allocate shared memory(shm) for file </torch_12_3>: Success (0)")),
    ("shared", RuntimeError("unable to write to file </torch_12_3_0>: No space left on device (28)")),
]
OTHERS = [
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"),
    RuntimeError("DataLoader worker (pid 7) is killed by signal: Segmentation fault. "),
    OSError(errno.ENOSPC, "No space left on device", "/dev/shm/run/metrics.jsonl"),
    ValueError("num_samples=0"),
]


@pytest.mark.parametrize(("kind", "error"), LACKS, ids=[str(error)[:60] for _, error in LACKS])
def test_a_lack_of_memory_is_known_in_every_form(kind, error):
    assert lacking(error) == kind
    message = remedied(error)
    assert message.startswith("out of memory (")
    assert message.endswith(REMEDIES[kind])
    assert "\n" not in message


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors_are_not_taken_for_it(error):
    assert lacking(error) is None
    assert remedied(error) is None


def missing_operator():
    return NotImplementedError(
        "No operator found for `memory_efficient_attention_forward` with inputs:\n     query : shape=(1, 2, 8, 40)\n"
    )


def not_deterministic():
    return RuntimeError(
        "upsample_bilinear2d_backward_out_cuda does not have a deterministic implementation, but you set "
        "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation"
    )


class InvalidCxxCompiler(RuntimeError):
    """As torch's compiler raises it."""


InvalidCxxCompiler.__module__ = "torch._inductor.exc"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (missing_operator(), r"attention=xformers: .*no operator.*shape=\(1, 2, 8, 40\).*use attention=sdpa"),
        (
            not_deterministic(),
            r"deterministic=true: upsample_bilinear2d_backward_out_cuda has no .*=false",
        ),
        (InvalidCxxCompiler("No working C++ compiler"), r"compile: .*No working C\+\+ compiler\); use compile=false"),
    ],
    ids=["xformers", "deterministic", "compile"],
)
def test_what_a_setting_avoids_is_said_with_the_setting(error, message):
    with pytest.raises(ConfigError, match=message):
        raise ConfigError(remedied(error))


class Noted:
    """A run that notes its end."""

    def __init__(self):
        self.info = {}

    def end(self, state, **fields):
        self.info = {"state": state, **fields}


def test_messages_that_say_enough_stay_and_all_are_noted():
    run = Noted()
    with pytest.raises(NotSaved, match=r"^free some disk space: cannot allocate memory$"), failures_noted(run):
        raise NotSaved("free some disk space: cannot allocate memory")
    assert run.info == {"state": "failed", "error": "NotSaved: free some disk space: cannot allocate memory"}
    with pytest.raises(ConfigError, match=r"^out of memory \(CUDA out of memory"), failures_noted(run):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert json.dumps(run.info) == '{"state": "failed", "error": "out of memory: CUDA out of memory"}'
