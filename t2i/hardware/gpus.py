"""Which GPUs of NVIDIA a process may use, and their driver, without a CUDA context: that would not survive a fork.

NVIDIA's management library (NVML) is asked, else nvidia-smi, which uses it; a container that was given neither still
has the device files. https://docs.nvidia.com/deploy/nvml-api
"""

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

DEVICES = Path("/dev")
DRIVER = Path("/proc/driver/nvidia/version")
LIBRARIES = ("libnvidia-ml.so.1", "nvml.dll")
VERSION = re.compile(r"\b\d{3,}\.\d+(\.\d+)?\b")  # as 550.54.15
LONGEST = 96  # bytes of a UUID or a version, in NVML's words


def visible_gpus() -> list[str]:
    """The GPUs, or parts of GPUs (MIG), that this process may use, each as CUDA_VISIBLE_DEVICES names it.

    Without that variable: numbers, or UUIDs if one of the GPUs is divided. A process that is given several parts sees
    the first one only, so each part counts.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = _by_nvml()
    if there is None:
        there = _by_nvidia_smi()
    if there is None:
        there = _by_device_files()
    return there if given is None else _chosen(given, there)


def driver_version() -> str | None:
    """The version of NVIDIA's driver, such as 550.54.15; None if nobody knows."""
    try:
        if found := VERSION.search(DRIVER.read_text(errors="replace")):
            return found[0]
    except OSError:
        pass
    if (library := _nvml()) is not None:
        text = ctypes.create_string_buffer(LONGEST)
        try:
            if library.nvmlSystemGetDriverVersion(text, LONGEST) == 0:
                return text.value.decode(errors="replace")
        finally:
            library.nvmlShutdown()
    return next(iter(_nvidia_smi("--query-gpu=driver_version", "--format=csv,noheader") or ()), None)


def _chosen(given: str, there: Sequence[str]) -> list[str]:
    """What CUDA makes of CUDA_VISIBLE_DEVICES: it stops at the first name that it can't use, and takes none twice.

    there: the devices of the machine, to know which numbers exist; where none were found, the variable is believed.
    """
    found: list[str] = []
    for name in (part.strip() for part in given.split(",")):
        number = re.fullmatch(r"\d+", name)
        exists = not there or int(name) < len(there) if number else name.startswith(("GPU-", "MIG-"))
        if not exists:
            break
        if name in found:
            return []
        found.append(name)
    return found


def _nvml() -> ctypes.CDLL | None:
    """The library, initialised."""
    for name in LIBRARIES:
        try:
            library = ctypes.CDLL(name)
            if library.nvmlInit_v2() == 0:
                return library
        except (OSError, AttributeError):
            continue
    return None


def _by_nvml() -> list[str] | None:
    if (library := _nvml()) is None:
        return None
    try:
        count = ctypes.c_uint()
        if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return None
        found, divided = list[list[str]](), False
        for index in range(count.value):
            device = ctypes.c_void_p()
            if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) != 0:
                return None
            current, pending = ctypes.c_uint(), ctypes.c_uint()
            is_divided = library.nvmlDeviceGetMigMode(device, ctypes.byref(current), ctypes.byref(pending)) == 0
            is_divided = is_divided and current.value == 1
            divided |= is_divided
            found.append(_parts(library, device) if is_divided else [_uuid(library, device)])
        names = [name for names in found for name in names]
        return names if divided else [str(index) for index in range(len(names))]
    except AttributeError:  # a library that is older than the functions
        return None
    finally:
        library.nvmlShutdown()


def _parts(library: ctypes.CDLL, device: ctypes.c_void_p) -> list[str]:
    """The UUIDs of the parts of a GPU in MIG mode."""
    most, found = ctypes.c_uint(), []
    library.nvmlDeviceGetMaxMigDeviceCount(device, ctypes.byref(most))
    for index in range(most.value):
        part = ctypes.c_void_p()
        if library.nvmlDeviceGetMigDeviceHandleByIndex(device, index, ctypes.byref(part)) == 0:
            found.append(_uuid(library, part))
    return found


def _uuid(library: ctypes.CDLL, device: ctypes.c_void_p) -> str:
    text = ctypes.create_string_buffer(LONGEST)
    library.nvmlDeviceGetUUID(device, text, LONGEST)
    return text.value.decode()


def _by_nvidia_smi() -> list[str] | None:
    if (lines := _nvidia_smi("-L")) is None:
        return None
    gpus = [line for line in lines if line.startswith("GPU")]
    parts = re.compile(r"\s*MIG .*\(UUID: (MIG-[^)]+)\)")
    if not any(parts.match(line) for line in lines):
        return [str(index) for index in range(len(gpus))]
    found: list[str] = []
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if part := parts.match(line):
            found.append(part[1])
        elif (whole := re.search(r"\(UUID: (GPU-[^)]+)\)", line)) and not parts.match(after):
            found.append(whole[1])
    return found


def _nvidia_smi(*arguments: str) -> list[str] | None:
    if shutil.which("nvidia-smi") is None:
        return None
    try:
        done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return [line.rstrip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else None


def _by_device_files() -> list[str]:
    """Of a container that was given GPUs to compute with, and none of NVIDIA's tools."""
    files = [file for file in DEVICES.glob("nvidia*") if re.fullmatch(r"nvidia\d+", file.name)]
    return [str(index) for index in range(len(files))]
