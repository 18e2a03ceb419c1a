"""How a GPU computes: the switches of PyTorch within a run, and after it."""

import os

import pytest
import torch

from t2i.optim.numerics import WORKSPACE, in_channels_last, numerics


def switches():
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return {
        "matrices in tf32": cuda.allow_tf32,
        "convolutions in tf32": cudnn.allow_tf32,
        "benchmark": cudnn.benchmark,
        "deterministic": cudnn.deterministic and torch.are_deterministic_algorithms_enabled(),
        "workspace": os.environ.get(WORKSPACE),
    }


@pytest.mark.parametrize(
    ("tf32", "benchmark", "deterministic"), [(False, False, False), (True, True, False), (False, False, True)]
)
def test_the_switches_are_set_within_and_set_back_after(monkeypatch, tf32, benchmark, deterministic):
    monkeypatch.delenv(WORKSPACE, raising=False)
    before = switches()
    assert before["convolutions in tf32"]  # PyTorch's default: precision=fp32 alone does not switch it off
    with numerics(tf32, benchmark, deterministic):
        within = switches()
    assert within == {
        "matrices in tf32": tf32,
        "convolutions in tf32": tf32,
        "benchmark": benchmark,
        "deterministic": deterministic,
        "workspace": ":4096:8" if deterministic else None,
    }
    assert switches() == before


def test_the_newer_switches_by_name_follow():
    for tf32, name in ((True, "tf32"), (False, "ieee")):
        with numerics(tf32, cudnn_benchmark=False, deterministic=False):
            assert torch.backends.cuda.matmul.fp32_precision == name


def test_an_operation_without_deterministic_implementation_names_itself():
    with numerics(False, False, deterministic=True), pytest.raises(RuntimeError, match=r"\S+ does not have a determin"):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))


@pytest.mark.parametrize(
    ("setting", "dtype", "device", "expected"),
    [
        ("auto", "bf16", (8, 0), True),
        ("auto", "fp16", (7, 0), True),
        ("auto", "fp16", (6, 1), False),
        ("auto", "fp32", (9, 0), False),
        ("auto", "fp32", "AVX512", True),
        ("auto", "fp32", "AVX2", True),
        ("auto", "fp32", "DEFAULT", False),  # such as an ARM CPU
        ("auto", "bf16", "AVX512", False),
        (True, "fp32", "DEFAULT", True),
        (False, "bf16", (9, 0), False),
    ],
)
def test_channels_come_last_where_that_is_faster(monkeypatch, setting, dtype, device, expected):
    """device: compute capability of a GPU, or vector instructions of a CPU."""
    on_gpu = isinstance(device, tuple)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: on_gpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: device)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: device)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    assert in_channels_last(setting, dtype) == expected
    assert in_channels_last(setting, dtype, begun=True) == (setting is not False)
    assert in_channels_last(setting, dtype, begun=False) == (setting is True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert in_channels_last("auto", dtype) is in_channels_last("auto", dtype, begun=True) is False
