"""How a device computes: TF32, cuDNN's choice of algorithms, deterministic operations, and the layout of kernels."""

import os
from collections.abc import Generator
from contextlib import contextmanager

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # which cuBLAS needs to compute the same bits each time
FIXED_WORKSPACE = ":4096:8"  # eight buffers of 4 MiB, as NVIDIA's documentation says
TENSOR_CORES = (7, 0)  # compute capability: since Volta
VECTOR_UNITS = ("AVX2", "AVX512")  # for which oneDNN has convolutions of this layout


def in_channels_last(setting: bool | str, dtype: str, begun: bool | None = None) -> bool:
    """Whether convolutions hold their kernels with the channels last; `auto`: where that is faster.

    It is on tensor cores in half precision (dtype: fp16 or bf16), and in float32 on x86 CPUs, where the other layout is
    rearranged for each convolution. FSDP shards contiguous weights only. begun: what the run began with, which `auto`
    keeps, as the last bits depend on it.
    """
    if setting != "auto":
        return bool(setting)
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        return False
    if begun is not None:
        return begun
    if torch.cuda.is_available():
        return dtype != "fp32" and torch.cuda.get_device_capability() >= TENSOR_CORES
    on_cpu = not torch.accelerator.is_available() and torch.backends.mkldnn.is_available()
    return on_cpu and dtype == "fp32" and torch.backends.cpu.get_cpu_capability() in VECTOR_UNITS


@contextmanager
def numerics(tf32: bool, cudnn_benchmark: bool, deterministic: bool) -> Generator[None]:
    """Within, GPUs compute in this way; PyTorch's switches are set back at the end.

    tf32: float32 products of matrices and convolutions keep 10 bits of the mantissa (GPUs since Ampere). PyTorch's own
    default is false for matrices and true for convolutions. cudnn_benchmark: cuDNN tries its algorithms for each new
    shape and takes the fastest, so that the last bits may differ from run to run. deterministic: operations that have
    no deterministic implementation raise RuntimeError.
    """
    before = _state()
    workspace = os.environ.get(WORKSPACE)
    if deterministic and workspace not in (":4096:8", ":16:8"):
        os.environ[WORKSPACE] = FIXED_WORKSPACE  # is read when CUDA's first product is computed
    _set(tf32, tf32, cudnn_benchmark and not deterministic, deterministic, deterministic, warn_only=False)
    try:
        yield
    finally:
        _set(*before)
        if deterministic:
            os.environ.pop(WORKSPACE) if workspace is None else os.environ.update({WORKSPACE: workspace})


def _state() -> tuple[bool, bool, bool, bool, bool, bool]:
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    determinism = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    return bool(cuda.allow_tf32), cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, *determinism


def _set(
    matrices: bool, convolutions: bool, benchmark: bool, cudnn_deterministic: bool, deterministic: bool, warn_only: bool
) -> None:
    """The switches of PyTorch that Accelerate, Diffusers and the compiler read; the newer ones by name follow them."""
    torch.backends.cuda.matmul.allow_tf32 = matrices
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.backends.cudnn.benchmark = benchmark
    torch.backends.cudnn.deterministic = cudnn_deterministic
    if _state()[-2:] != (deterministic, warn_only):  # the call imports the compiler, which takes seconds
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
