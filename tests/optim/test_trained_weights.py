"""The weights as the optimizer updates them, and as the network multiplies them."""

import copy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from t2i.config import ConfigError
from t2i.optim import precision
from t2i.optim.ema import EMA
from t2i.optim.precision import Precision
from t2i.optim.trained_weights import Trained

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
    """Also with accumulation: gradients are added up in float32, as autocast's are."""
    cast, master = network(), network()
    expected, found = steps_of(cast, Trained(cast, CAST)), steps_of(master, Trained(master, MASTER))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert {weight.dtype for weight in found.values()} == {torch.float32}


def test_the_network_multiplies_the_rounded_copies():
    net = network()
    trained = Trained(net, MASTER)
    steps_of(net, trained)
    for name, parameter in net.named_parameters():
        assert parameter.dtype == (torch.bfloat16 if parameter.ndim > 1 else torch.float32)
        assert torch.equal(parameter, trained.weights[name].to(parameter.dtype))
        assert parameter.ndim < 2 or parameter.grad is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads the mappings of this process from /proc")
@pytest.mark.parametrize("how", [MASTER, Precision("bf16", "stochastic")])
def test_nothing_keeps_the_file_of_the_weights_in_memory(how, small_pipeline, tmp_path):
    """What is read from safetensors are views of one mapping of the file; one that is left keeps all of it."""
    shutil.copytree(small_pipeline / "unet", tmp_path / "unet")
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    Trained(unet, how)
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("how", [MASTER, CAST, Precision("bf16", "stochastic"), precision.FP32])
def test_frozen_matrices_are_held_as_they_are_multiplied(how):
    net = network()
    net[0].requires_grad_(False)
    trained = Trained(net, how)
    assert net[0].weight.dtype == how.compute
    assert net[0].bias.dtype == torch.float32
    assert trained.weights.keys() == {"1.weight", "1.bias", "4.weight", "4.bias"}


def test_replaced_weights_come_back():
    net = network()
    trained = Trained(net, MASTER)
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
    trained, ema = Trained(net, Precision("bf16", "stochastic")), EMA(0.999, warmup=False)
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
    state = steps_of(first, Trained(first, MASTER))
    Trained(second, MASTER).load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_weights_of_another_network_are_refused():
    with pytest.raises(ConfigError, match="other weights than are trained, such as extra"):
        Trained(network()).load_state_dict(Trained(network()).state_dict() | {"extra": torch.zeros(1)})


@pytest.mark.parametrize(
    ("given", "processes", "resolved"),
    [
        (("bf16", "auto"), 1, MASTER),
        (("bf16", "auto"), 2, CAST),
        (("fp32", "auto"), 1, precision.FP32),
        (("bf16", "stochastic"), 2, Precision("bf16", "stochastic")),
    ],
)
def test_how_weights_are_held(monkeypatch, given, processes, resolved):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    assert precision.resolve_precision(*given) == resolved


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
        precision.resolve_precision(*given)


def state(run):
    (checkpoint,) = sorted(run.checkpoints.glob("step-*"))[-1:]
    return load_file(checkpoint / "denoiser.safetensors") | load_file(checkpoint / "ema.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["none", "lora"])  # DoRA measures the frozen weights, so their rounding shows
def test_runs_with_and_without_a_master_copy_are_the_same(train, tmp_path, adapter):
    """Weights, averages and errors, bit for bit."""
    runs = [
        train(
            tmp_path / weights, "precision=bf16", f"precision.weights={weights}", f"adapter={adapter}",
            "micro_batch_size=4",
        )
        for weights in ("master", "fp32")
    ]  # fmt: skip
    expected, found = (state(run) for run in runs)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert runs[0].metrics()[-1]["val/loss"] == runs[1].metrics()[-1]["val/loss"]
