"""An optimizer step in JAX is PyTorch's, however the batch and the weights are divided."""

import pytest
import torch

pytest.importorskip("jax")

import jax
import jax.numpy as jnp
from helpers.small_denoisers import inputs_of, losses_of, small_denoiser

from t2i.backends.jax.devices import Devices, to_torch
from t2i.backends.jax.optimizers import optimizer_of
from t2i.backends.jax.state import State
from t2i.backends.jax.step import Compiled
from t2i.backends.jax.unet import unet_of

pytestmark = pytest.mark.slow  # JAX compiles each case for seconds
STEPS, BATCH, DECAY, LR = 3, 32, 0.9, 1e-4


def batches(step, accumulation):
    inputs = inputs_of("sd15", BATCH, 8, 8, seed=step)
    size = BATCH // accumulation
    return [{name: each[i * size :][:size] for name, each in inputs.items()} for i in range(accumulation)]


def state_of(network, devices):
    compiled = Compiled(
        network=unet_of(network.config, {}),
        devices=devices,
        batch_size=BATCH,
        max_grad_norm=1.0,
        dtype=jnp.float32,
        error="Squared",
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=0.1)
    update = optimizer_of(optimizer.param_groups[0], torch.optim.AdamW)
    weights = {name: weight.detach() for name, weight in network.named_parameters()}
    state = State(compiled, lambda: update, weights, {})
    state.add_averages([weights])
    return state


def after_steps(devices, accumulation):
    """Weights and averages after some steps, their gradients' norms, and the state that they came from."""
    state, norms = state_of(small_denoiser("sd15"), devices), []
    for step in range(STEPS):
        _, norm = state.take_step(batches(step, accumulation), LR, [DECAY])
        norms.append(float(norm))
    assert dict(state.compiled.traced) == {"gradients": 1, "update": 1}  # nothing is compiled after the first step
    host = [{name: to_torch(each) for name, each in arrays.items()} for arrays in (state.weights, *state.averages)]
    return *host, norms, state


@pytest.fixture(scope="module")
def one_device():
    return after_steps(Devices(devices=jax.devices()[:1]), 1)


def assert_close(ours, theirs):
    for one, other in zip(ours[:2], theirs[:2], strict=True):
        difference = sum((one[name] - other[name]).double().square().sum() for name in other).sqrt()
        assert difference < 1e-5 * sum(each.double().square().sum() for each in other.values()).sqrt()
    assert ours[2] == pytest.approx(theirs[2], rel=1e-5)


def test_steps_are_those_of_pytorch(one_device):
    network, norms = small_denoiser("sd15"), []
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=0.1)
    average = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    for step in range(STEPS):
        losses_of(network, inputs_of("sd15", BATCH, 8, 8, seed=step))[1].mean().backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)))
        optimizer.step()
        optimizer.zero_grad()
        for name, weight in network.named_parameters():
            average[name].lerp_(weight.detach(), 1 - DECAY)
    assert max(norms) > 1  # some are clipped
    assert_close(one_device, (dict(network.named_parameters()), average, norms))


def test_accumulation_of_four_is_one_batch(one_device):
    assert_close(after_steps(Devices(devices=jax.devices()[:1]), 4), one_device)


@pytest.mark.parametrize("sliced", [False, True])
def test_eight_devices_are_one(sliced, one_device):
    eight = after_steps(Devices(sliced), 1)
    assert_close(eight, one_device)
    kernel = eight[3].weights["conv_in.weight"]
    assert len(kernel.sharding.device_set) == 8
    assert kernel.addressable_shards[0].data.size == kernel.size // (8 if sliced else 1)


def test_a_step_without_a_finite_gradient_changes_nothing(one_device):
    weights, _, _, state = one_device
    before, moments = to_torch(state.step), to_torch(state.moments["conv_in.weight"]["exp_avg"])
    [batch] = batches(0, 1)
    _, norm = state.take_step([batch | {"scale": batch["scale"] * float("nan")}], LR, [DECAY])
    assert jnp.isnan(norm)
    assert torch.equal(to_torch(state.weights["conv_in.weight"]), weights["conv_in.weight"])
    assert torch.equal(to_torch(state.moments["conv_in.weight"]["exp_avg"]), moments)
    assert to_torch(state.step) == before == STEPS
    assert state.steps > STEPS


def test_predictions_of_other_batch_sizes_are_the_same_rows(one_device):
    state, inputs = one_device[3], inputs_of("sd15", 3, 8, 8)
    text = {"encoder_hidden_states": inputs["encoder_hidden_states"]}
    three = state.predict(inputs["x"], inputs["time"], text)
    assert three.shape == (3, 4, 8, 8)
    two = state.predict(inputs["x"][:2], inputs["time"][:2], {name: each[:2] for name, each in text.items()})
    torch.testing.assert_close(two, three[:2], rtol=0, atol=1e-4 * float(three.abs().max()))
