"""What a lack of memory looks like. Each library tells of it in its own words; torch is not imported to know them."""

import errno
import re

# What the drivers and libraries of a GPU say. A handle of cuBLAS or cuDNN that can't be made lacks memory, too.
ON_GPU = re.compile(
    r"(CUDA|HIP|MPS|NCCL|cu(BLAS|DNN|SOLVER|FFT|SPARSE|RAND))\b.*"
    r"(out of memory|(?<!NOT_)ALLOC(ATION)?_FAILED|memory allocation|(CUBLAS|CUDNN)_STATUS_NOT_INITIALIZED)",
    re.IGNORECASE | re.DOTALL,
)
SHARED = re.compile(r"bus error|shared memory|shm", re.IGNORECASE)
TORCH_SHARED = re.compile(r"shared memory.*</torch_|</torch_.*No space left", re.DOTALL)  # a file that workers share
IN_LOADER = re.compile(r"dataloader.*(killed by signal: Killed|MemoryError|allocate|out of memory)", re.I | re.DOTALL)
ON_HOST = re.compile(
    r"can.?t allocate memory|cannot allocate memory|not enough memory|unable to allocate|out of memory|bad_alloc|"
    r"RESOURCE_EXHAUSTED",  # JAX, of any device
    re.IGNORECASE,
)
COMPUTING = (
    "a smaller micro_batch_size (the result is the same), gradient_checkpointing=true, precision=bf16, or bf16_sr for "
    "a new run"
)
REMEDIES = {
    "gpu": f"{COMPUTING}; and an end of other programs on this GPU",
    "shared": "num_workers=0; or more shared memory, in a container by --shm-size=8g or --ipc=host",
    "loader": "a smaller num_workers (0 reads in the main process), or a smaller micro_batch_size",
    "host": f"on a CPU {COMPUTING}; and a smaller num_workers, save_in_background=false, an end of other programs",
}


def lacking(error: BaseException | None) -> str | None:
    """What an error, or one behind it, says was too small, as a key of REMEDIES; None if it says nothing of memory."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if kind := _kind(error):
            return kind
        seen.append(error)
        error = error.__cause__ or error.__context__
    return None


def _kind(error: BaseException) -> str | None:
    name, text = type(error).__name__, str(error)
    library = isinstance(error, RuntimeError | OSError)  # torch.OutOfMemoryError and AcceleratorError are RuntimeErrors
    if name == "OutOfMemoryError" or (library and ON_GPU.search(text)):
        return "gpu"
    if library and "dataloader" in text.lower() and SHARED.search(text):
        return "shared"
    if library and TORCH_SHARED.search(text):
        return "shared"
    if isinstance(error, MemoryError | RuntimeError | OSError) and IN_LOADER.search(text):
        return "loader"
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM or ON_HOST.search(text):
        return "host"
    return None


def advice(kind: str, error: BaseException) -> str:
    """The message about a lack of memory. kind: of `lacking`."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    caught = lines and lines[0].startswith("Caught ")  # in a worker, whose own error stands at the end
    reason = (lines[-1] if caught else lines[0]) if lines else type(error).__name__
    return f"out of memory ({reason}); what helps: {REMEDIES[kind]}"
