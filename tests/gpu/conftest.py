"""A CUDA device, and the CPU that takes its place in a rehearsal: the same comparisons run on both."""

import pytest


@pytest.fixture(
    scope="session",
    params=[
        pytest.param("cuda", marks=pytest.mark.gpu),
        pytest.param("cpu", marks=[pytest.mark.slow, pytest.mark.long]),
    ],
)
def device(request):
    return request.param


@pytest.fixture(scope="session")
def cuda():
    return "cuda"


@pytest.fixture(scope="session")
def on_cpu(small, tmp_path_factory):
    """Trains on the CPU, in a process that sees no GPU."""
    from helpers.device_runs import Device

    trainer = Device("cpu", tmp_path_factory.mktemp("on-cpu"), small)
    yield trainer
    trainer.close()


@pytest.fixture(scope="session")
def on_gpu(cuda, small, tmp_path_factory):
    """For what needs one."""
    from helpers.device_runs import Device

    trainer = Device(cuda, tmp_path_factory.mktemp("on-gpu"), small)
    yield trainer
    trainer.close()


@pytest.fixture(scope="session")
def on_device(device, small, tmp_path_factory):
    from helpers.device_runs import Device

    trainer = Device(device, tmp_path_factory.mktemp(f"on-{device}"), small)
    yield trainer
    trainer.close()
