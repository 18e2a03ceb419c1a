"""Which GPUs there are, on machines that are made up: NVML and nvidia-smi stand in for those of a driver."""

import ctypes
import os
import subprocess
import sys

import pytest

from t2i.hardware import gpus, host_memory

PLAIN = "GPU 0: NVIDIA A100 (UUID: GPU-aa)\nGPU 1: NVIDIA A100 (UUID: GPU-bb)\n"
DIVIDED = (
    "GPU 0: NVIDIA A100 (UUID: GPU-aa)\n"
    "  MIG 3g.20gb     Device  0: (UUID: MIG-11)\n"
    "  MIG 3g.20gb     Device  1: (UUID: MIG-22)\n"
    "GPU 1: NVIDIA A100 (UUID: GPU-bb)\n"
)


class FakeNVML:
    """The functions of the library; devices: a GPU's UUID -> those of its parts, None if it is not divided."""

    def __init__(self, devices, driver="550.54.15"):
        self.devices, self.driver, self.open = devices, driver, 0

    def nvmlInit_v2(self):
        self.open += 1
        return 0

    def nvmlShutdown(self):
        self.open -= 1
        return 0

    def nvmlDeviceGetCount_v2(self, count):
        count._obj.value = len(self.devices)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, device):
        device._obj.value = 1 + index
        return 0

    def nvmlDeviceGetMigMode(self, device, current, pending):
        current._obj.value = self._parts(device) is not None
        return 0

    def nvmlDeviceGetMaxMigDeviceCount(self, device, most):
        most._obj.value = 7
        return 0

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device, index, part):
        if index >= len(self._parts(device)):
            return 6  # not found
        part._obj.value = 100 * device.value + index
        return 0

    def nvmlDeviceGetUUID(self, device, text, length):
        whole, part = divmod(device.value, 100)
        name = list(self.devices)[part - 1] if not whole else list(self.devices.values())[whole - 1][part]
        text.value = name.encode()
        return 0

    def nvmlSystemGetDriverVersion(self, text, length):
        text.value = self.driver.encode()
        return 0

    def _parts(self, device):
        return list(self.devices.values())[device.value - 1]


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Sets up a machine with these means to count GPUs."""

    def set_up(nvml=None, smi=None, files=(), visible=None):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

        def library(name):
            if nvml is None:
                raise OSError(f"{name}: cannot open shared object file")
            return nvml

        monkeypatch.setattr(ctypes, "CDLL", library)
        monkeypatch.setattr(gpus.shutil, "which", lambda name: f"/usr/bin/{name}" if smi is not None else None)
        done = subprocess.CompletedProcess([], 0, stdout=smi)
        monkeypatch.setattr(gpus.subprocess, "run", lambda *args, **settings: done)
        for name in files:
            (tmp_path / name).touch()
        monkeypatch.setattr(gpus, "DEVICES", tmp_path)
        monkeypatch.setattr(gpus, "DRIVER", tmp_path / "version")

    return set_up


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ({}, []),
        ({"nvml": FakeNVML({"GPU-aa": None, "GPU-bb": None})}, ["0", "1"]),
        ({"nvml": FakeNVML({"GPU-aa": ["MIG-11", "MIG-22"], "GPU-bb": None})}, ["MIG-11", "MIG-22", "GPU-bb"]),
        ({"nvml": FakeNVML({"GPU-aa": []})}, []),  # in MIG mode, without parts: nothing to compute with
        ({"nvml": FakeNVML({})}, []),
        ({"smi": PLAIN}, ["0", "1"]),
        ({"smi": DIVIDED}, ["MIG-11", "MIG-22", "GPU-bb"]),
        ({"files": ["nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm"]}, ["0", "1"]),  # CUDA counts from 0
        ({"smi": PLAIN, "visible": "1"}, ["1"]),
        ({"smi": PLAIN, "visible": ""}, []),
        ({"smi": PLAIN, "visible": "-1"}, []),
        ({"smi": PLAIN, "visible": "0,5,1"}, ["0"]),  # CUDA stops at the first that is not there
        ({"smi": PLAIN, "visible": "0,-1,1"}, ["0"]),
        ({"smi": PLAIN, "visible": "0,0"}, []),
        ({"smi": PLAIN, "visible": " 0 , 1 "}, ["0", "1"]),
        ({"smi": DIVIDED, "visible": "MIG-22,GPU-bb"}, ["MIG-22", "GPU-bb"]),
        ({"visible": "0,1"}, ["0", "1"]),  # nobody knows better
    ],
)
def test_gpus_are_found_and_named_as_cuda_names_them(machine, means, expected):
    machine(**means)
    assert gpus.visible_gpus() == expected
    assert means.get("nvml") is None or means["nvml"].open == 0


def test_the_driver_is_that_of_the_kernel_or_of_the_library(machine, tmp_path):
    machine(nvml=FakeNVML({}))
    assert gpus.driver_version() == "550.54.15"
    machine(smi="535.104.05\n")
    assert gpus.driver_version() == "535.104.05"
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (root@x)  Thu Jan 23 2025\n"
        "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
    )
    assert gpus.driver_version() == "570.86.15"
    (tmp_path / "version").unlink()
    machine()
    assert gpus.driver_version() is None


def test_counting_imports_no_torch():
    program = "import sys; from t2i.hardware.gpus import visible_gpus; visible_gpus(); print('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert found.stdout.strip() == "False", found.stderr


@pytest.mark.parametrize(
    ("line", "version", "limit", "usage", "stat", "expected"),
    [
        ("0::/slurm/job", 2, "1000", "700", "anon 1\ninactive_file 100\n", 400),
        ("0::/slurm/job", 2, "max", "700", "inactive_file 100\n", 10**6),
        ("4:memory:/job", 1, "1000", "1300", "total_inactive_file 100\n", 0),
        ("4:cpu:/job", 1, "1000", "700", "total_inactive_file 0\n", 10**6),
    ],
)
def test_memory_is_what_the_machine_and_the_control_groups_leave(
    monkeypatch, tmp_path, line, version, limit, usage, stat, expected
):
    limit_file, usage_file, _ = host_memory.VERSIONS[version]
    root = tmp_path if version == 2 else tmp_path / "memory"
    group = root / line.rpartition(":")[2].strip("/")
    group.mkdir(parents=True)
    for name, text in ((limit_file, limit), (usage_file, usage), ("memory.stat", stat)):
        (group / name).write_text(text)
    (tmp_path / "own").write_text(f"{line}\n")
    monkeypatch.setattr(host_memory, "GROUPS", tmp_path)
    monkeypatch.setattr(host_memory, "OF_PROCESS", tmp_path / "own")
    monkeypatch.setattr(host_memory.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10**6}))
    assert host_memory.available_memory() == expected


def test_the_peak_is_that_of_the_process_and_not_of_the_large_one_that_started_it():
    """As the notebook of a sweep may be."""
    held = bytearray(500_000_000)
    program = "from t2i.hardware.host_memory import peak_memory; print(peak_memory()); x = bytearray(300_000_000); "
    program += "print(peak_memory())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before < len(held) / 2
    assert after - before > 290e6
