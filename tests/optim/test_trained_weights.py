"""The trained weights as the optimizer updates them, and as the network multiplies them."""

import copy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from t2i.config import ConfigError
from t2i.optim.ema import EMA
from t2i.optim.precision import FP32, Precision, resolve_precision
from t2i.optim.trained_weights import copy_each, hold_weights

MASTER, CAST = Precision("bf16", "master"), Precision("bf16", "fp32")


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, 8, 3), torch.nn.GroupNorm(2, 8), torch.nn.SiLU(), torch.nn.Flatten(), torch.nn.Linear(32, 3)
    )


def steps_of(net, trained, steps=3, micro_batches=2):
    """AdamW steps under autocast; returns the weights."""
    optimizer = torch.optim.AdamW(list(trained.weights.values()), lr=1e-2)
    trained.attach(optimizer)
    random = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for _ in range(micro_batches):
            with torch.autocast("cpu", torch.bfloat16):
                prediction = net(torch.randn(4, 2, 4, 4, generator=random))
            prediction.float().square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return trained.state_dict()


def test_a_master_copy_trains_as_autocast_does_bit_for_bit():
    """Also with gradient accumulation, which adds up in float32, as under autocast."""
    cast, master = network(), network()
    expected, copies = steps_of(cast, hold_weights(cast, CAST)), steps_of(master, hold_weights(master, MASTER))
    assert expected.keys() == copies.keys()
    assert all(torch.equal(expected[name], copies[name]) for name in expected)
    assert {weight.dtype for weight in copies.values()} == {torch.float32}


def test_the_network_multiplies_the_rounded_copies():
    net = network()
    trained = hold_weights(net, MASTER)
    steps_of(net, trained)
    for name, parameter in net.named_parameters():
        assert parameter.dtype == (torch.bfloat16 if parameter.ndim > 1 else torch.float32)
        assert torch.equal(parameter, trained.weights[name].to(parameter.dtype))
        assert parameter.ndim < 2 or parameter.grad is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads the mappings of this process from /proc")
@pytest.mark.parametrize("precision", [MASTER, Precision("bf16", "stochastic")])
def test_nothing_keeps_the_file_of_the_weights_in_memory(precision, small_pipeline, tmp_path):
    """Tensors read from safetensors are views of one mapping of the file; a single one keeps all of it in memory."""
    shutil.copytree(small_pipeline / "unet", tmp_path / "unet")
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    hold_weights(unet, precision)
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("precision", [MASTER, CAST, Precision("bf16", "stochastic"), FP32])
def test_frozen_matrices_are_held_as_they_are_multiplied(precision):
    net = network()
    net[0].requires_grad_(False)
    trained = hold_weights(net, precision)
    assert net[0].weight.dtype == precision.compute
    assert net[0].bias.dtype == torch.float32
    assert trained.weights.keys() == {"1.weight", "1.bias", "4.weight", "4.bias"}


def test_replaced_weights_come_back():
    net = network()
    trained = hold_weights(net, MASTER)
    before = copy.deepcopy(net.state_dict())
    zeros = {name: torch.zeros_like(weight) for name, weight in trained.weights.items()}
    with trained.replaced(zeros):
        assert net[4].weight.dtype == torch.bfloat16
        assert not any(parameter.any() for parameter in net.parameters())
    with trained.replaced(trained.weights, torch.float32):
        assert all(torch.equal(parameter, trained.weights[name]) for name, parameter in net.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_averages_are_kept_in_float32():
    """In bfloat16 an average with a decay of 0.999 would never move."""
    net = network()
    trained, ema = hold_weights(net, Precision("bf16", "stochastic")), EMA(0.999, warmup=False)
    ema.track(trained, None)
    start = ema.shadow["4.weight"].clone()
    with torch.no_grad():
        net[4].weight.add_(1.0)
    ema.update()
    expected = start + 0.001 * (net[4].weight.float() - start)
    assert torch.allclose(ema.shadow["4.weight"], expected, atol=1e-7)
    assert not torch.equal(ema.shadow["4.weight"], start)


def test_a_loaded_state_reaches_the_network():
    first, second = network(), network()
    state = steps_of(first, hold_weights(first, MASTER))
    hold_weights(second, MASTER).load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_each_source_is_copied_into_its_target():
    same, cast = torch.zeros(2), torch.zeros(3, dtype=torch.bfloat16)
    copy_each([same, cast], [torch.ones(2), torch.full((3,), 0.1)])
    assert torch.equal(same, torch.ones(2))
    assert torch.equal(cast, torch.full((3,), 0.1).bfloat16())
    copy_each([], [])


def test_weights_of_another_network_are_refused():
    with pytest.raises(ConfigError, match="other weights than this run trains, such as extra"):
        hold_weights(network()).load_state_dict(hold_weights(network()).state_dict() | {"extra": torch.zeros(1)})


@pytest.mark.parametrize(
    ("given", "processes", "resolved"),
    [
        (("bf16", "auto"), 1, MASTER),
        (("bf16", "auto"), 2, CAST),
        (("fp32", "auto"), 1, FP32),
        (("bf16", "stochastic"), 2, Precision("bf16", "stochastic")),
    ],
)
def test_how_weights_are_held(monkeypatch, given, processes, resolved):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    assert resolve_precision(*given) == resolved


@pytest.mark.parametrize(
    ("given", "processes", "message"),
    [
        (("bf16", "half"), 1, "precision.weights=half is not known; choose from auto, fp32, master, stochastic"),
        (("fp32", "master"), 1, "precision.weights=master is for bf16"),
        (("bf16", "master"), 2, "precision.weights=master is for one process"),
    ],
)
def test_impossible_ways_to_hold_weights(monkeypatch, given, processes, message):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    with pytest.raises(ConfigError, match=message):
        resolve_precision(*given)


def state(run):
    (checkpoint,) = sorted(run.checkpoints.glob("step-*"))[-1:]
    return load_file(checkpoint / "denoiser.safetensors") | load_file(checkpoint / "ema.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["none", "lora"])  # DoRA measures the frozen weights, so their rounding shows
def test_runs_with_and_without_a_master_copy_are_the_same(train, tmp_path, adapter):
    """Weights, averages and errors, bit for bit."""
    common = ["precision=bf16", f"adapter={adapter}", "micro_batch_size=4"]
    master, cast = (
        train(tmp_path / weights, f"precision.weights={weights}", *common) for weights in ("master", "fp32")
    )
    expected, copies = state(cast), state(master)
    assert all(torch.equal(expected[name], copies[name]) for name in expected)
    assert master.metrics()[-1]["val/loss"] == cast.metrics()[-1]["val/loss"]
