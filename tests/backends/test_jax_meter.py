"""The meter in JAX counts as PyTorch's does, and waits for the devices only when it is read or saved."""

import pytest
import torch

pytest.importorskip("jax")

import jax.numpy as jnp

from t2i.backends.jax import meter as module
from t2i.backends.jax.devices import Devices
from t2i.backends.jax.meter import MeterInJax
from t2i.training.meters import UNCHECKED, Meter

SETTINGS = (8, 1.0, 1000, UNCHECKED)
SPEED = "speed/images_per_second"


@pytest.fixture
def waits(monkeypatch):
    """How often something was fetched from the devices, as a list that grows."""
    fetched = []
    for name in ("own_examples", "to_torch"):
        fetch = getattr(module, name)
        monkeypatch.setattr(module, name, lambda array, fetch=fetch: fetched.append(array) or fetch(array))
    return fetched


def count(steps, ours, theirs):
    """Two micro-batches a step, divided among the devices; the third step has no finite gradient."""
    devices, random = Devices(), torch.Generator().manual_seed(0)
    for step in range(steps):
        for _ in range(2):
            losses, squares = torch.rand(2, 8, generator=random)
            losses[step % 8] = float("nan") if step == 2 else 1.0
            t, items = torch.randint(0, 1000, (2, 8), generator=random)
            arrays = devices.put_examples({"losses": losses, "squares": squares})
            ours.examples(arrays["losses"], arrays["squares"], t, items)
            theirs.examples(losses, squares, t, items)
        norm = torch.tensor(float("nan") if step == 2 else 0.4 * step)
        ours.step(step, jnp.asarray(norm.numpy()))
        theirs.step(step, norm)


def test_it_reads_the_same_without_waiting_between(waits, caplog):
    ours, theirs = MeterInJax(*SETTINGS), Meter(*SETTINGS)
    count(5, ours, theirs)
    assert not waits
    assert caplog.text.count("step 2 is skipped") == 1  # theirs
    read, expected = ours.read(), theirs.read()
    assert {**read, SPEED: 0} == {**expected, SPEED: 0}
    assert read[SPEED] > 0
    assert caplog.text.count("step 2 is skipped: its gradient is not finite; loss not finite: timestep ") == 2


def test_what_waits_goes_into_a_checkpoint(waits):
    ours, theirs = MeterInJax(*SETTINGS), Meter(*SETTINGS)
    count(4, ours, theirs)
    state, expected = ours.state_dict(), theirs.state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert len(waits) == 4 * (2 * 2 + 1)


def test_a_run_that_never_logs_is_checked_all_the_same(waits):
    ours, theirs = MeterInJax(*SETTINGS), Meter(*SETTINGS)
    count(UNCHECKED, ours, theirs)
    assert len(waits) == UNCHECKED * (2 * 2 + 1)
    assert not ours.waiting
