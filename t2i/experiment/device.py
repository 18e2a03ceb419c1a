"""What follows from the device that a run computes on: workers, how checkpoints are saved, and what run.json says."""

import os

import torch

from t2i.hardware.gpus import driver_version

MOST_WORKERS = 4  # of each process


def worker_count(setting: int | str, device: torch.device) -> int:
    """Processes that prepare batches ahead; `auto`: none on a CPU, which they would take from the training.

    On a GPU as many as the machine's cores have room for, beside the process itself.
    """
    if setting != "auto":
        return int(setting)
    if device.type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(0, min(MOST_WORKERS, cores // here - 1))


def saves_in_background(setting: bool | str, device: torch.device) -> bool:
    """Whether a checkpoint is written while the run goes on; `auto`: on a GPU, for which the copy of the state is made
    anyway. On a CPU the copy would double the memory of the state, and the writing takes from the training.
    """
    return device.type != "cpu" if setting == "auto" else bool(setting)


def hardware(device: torch.device) -> dict[str, str | None]:
    """What run.json says of it: the GPU's name and its driver's version, null on a CPU."""
    on_gpu = device.type == "cuda"
    return {
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "driver": driver_version() if on_gpu else None,
    }
