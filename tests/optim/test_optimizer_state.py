"""What a checkpoint says of weights and optimizer is taken only if it can be theirs, whatever its checksums say."""

import copy

import pytest
import torch

from t2i.config import ConfigError
from t2i.optim.ema import EMA
from t2i.optim.optimizer_state import CheckedOptimizer
from t2i.optim.trained_weights import NetworkWeights, load_weights


@pytest.fixture
def stepped():
    """An optimizer that has taken a step, and a copy of its state."""
    weights = [torch.nn.Parameter(torch.ones(3, 4)), torch.nn.Parameter(torch.ones(2, 4))]
    optimizer = torch.optim.AdamW(weights)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    return CheckedOptimizer(optimizer), copy.deepcopy(optimizer.state_dict())


def test_its_own_state_is_taken(stepped):
    optimizer, state = stepped
    optimizer.load_state_dict(state)
    torch.testing.assert_close(optimizer.state_dict(), state, rtol=0, atol=0)


@pytest.mark.parametrize("value", [torch.zeros(1, 4), torch.zeros(0, 4), torch.zeros(3, 4, dtype=torch.int32), "text"])
def test_a_moment_of_another_shape_or_type_is_refused(stepped, value):
    optimizer, state = stepped
    state["state"][0]["exp_avg"] = value
    with pytest.raises(ConfigError, match=r"exp_avg of weight 0 is .* must be \(3, 4\) of floating point"):
        optimizer.load_state_dict(state)


def test_moments_lie_as_the_weight_does():
    """As a fused optimizer takes them by their order in memory."""
    first = torch.nn.Parameter(torch.randn(4, 3, 2, 2))
    last = torch.nn.Parameter(first.detach().clone(memory_format=torch.channels_last))
    gradients = torch.randn(2, *first.shape)
    optimizers = [CheckedOptimizer(torch.optim.AdamW([weight], fused=True)) for weight in (first, last)]

    def step(weight, optimizer, gradient):
        weight.grad = torch.empty_like(weight).copy_(gradient)
        optimizer.optimizer.step()

    step(first, optimizers[0], gradients[0])
    last.data.copy_(first)
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for weight, optimizer in zip((first, last), optimizers, strict=True):
        step(weight, optimizer, gradients[1])
    torch.testing.assert_close(last.detach(), first.detach())


def test_a_moment_that_is_missing_is_refused(stepped):
    optimizer, state = stepped
    del state["state"][1]["exp_avg_sq"]
    with pytest.raises(ConfigError, match="has exp_avg_sq for some weights only"):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize("steps", [float("nan"), float("inf"), -1.0])
def test_a_number_of_steps_that_is_none_is_refused(stepped, steps):
    optimizer, state = stepped
    state["state"][0]["step"] = torch.tensor(steps)
    with pytest.raises(ConfigError, match=r"says that weight 0 has taken .* steps"):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize(
    "given", [torch.ones(1, 4), torch.ones(4), torch.ones(()), torch.ones(3, 4, dtype=torch.int64)]
)
def test_nothing_is_repeated_to_fill_a_weight_or_an_average(given):
    weight = torch.nn.Parameter(torch.zeros(3, 4))
    average = EMA(decay=0.9, warmup=False)
    average.track(NetworkWeights({"w": weight}, {"w": weight}), torch.optim.SGD([weight]))
    with pytest.raises(ConfigError, match=r"w has the shape .* in the checkpoint, and \(3, 4\) in this run"):
        load_weights({"w": weight}, {"w": given})
    with pytest.raises(ConfigError, match=r"w has the shape .* in the checkpoint, and \(3, 4\) in this run"):
        average.load_state_dict({"w": given, "updates": torch.tensor(1)})
    assert not weight.any()
