"""Every option of the group trains, and resumes after a pause as if there had been none."""

import copy
import sys

import pytest
import torch
from helpers.runs import compose
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from t2i.config import ConfigError
from t2i.experiment.plan import check_the_rest, make_plan
from t2i.optim.ema import ScheduleFree
from t2i.optim.optimizers import StochasticAdamW, random_halves, round_stochastically
from t2i.optim.trained_weights import hold_weights

ADAMW = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}


def random(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(deadline=None, max_examples=50)
@given(st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False), st.integers(0, 2**32))
def test_rounding_gives_a_neighbour_whose_mean_is_the_number(x, seed):
    rounded = round_stochastically(torch.full((40_000,), x), random_halves(40_000, random(seed)))
    assert torch.equal(rounded, rounded.bfloat16().float())
    low, high = rounded.min().item(), rounded.max().item()
    assert low <= x <= high
    if low < high:
        between = torch.tensor([low, high]).bfloat16().view(torch.int16)
        assert abs(int(between[1]) - int(between[0])) == 1
        fraction = (rounded == high).double().mean().item()
        expected = (x - low) / (high - low)
        assert abs(fraction - expected) < 6 * (expected * (1 - expected) / len(rounded)) ** 0.5 + 2**-15


def test_numbers_that_bfloat16_represents_do_not_change():
    exact = torch.tensor([0.0, -0.0, 1.0, -2.5, float("inf"), -float("inf")]).repeat(100)
    assert torch.equal(round_stochastically(exact.clone(), random_halves(len(exact), random())), exact)


def test_in_float32_it_is_adamw():
    theirs, ours = (torch.nn.Parameter(torch.randn(7, 5, generator=random())) for _ in range(2))
    optimizers = torch.optim.AdamW([theirs], lr=1e-2, **ADAMW), StochasticAdamW([ours], lr=1e-2, **ADAMW, seed=0)
    for step in range(20):
        gradient = torch.randn(7, 5, generator=random(step))
        for weight, optimizer in zip((theirs, ours), optimizers, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    assert torch.allclose(theirs, ours, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "override",
    [
        *("betas=[0.9]", "betas=[0.9,0.99,0.999]", "betas=[0.9,1]", "betas=[-0.1,0.9]", "betas=0.9", "betas=[a,b]"),
        *("eps=-1e-8", "weight_decay=-1", "lr=-1", "lr=.nan", "eps=.inf"),
    ],
)
def test_settings_of_the_wrong_shape_or_range_are_refused_before_anything_is_loaded(override):
    with pytest.raises(ConfigError, match="optimizer"):
        check_the_rest(compose("optimizer=adamw_sr", f"optimizer.{override}"))


def moved(rate, steps, dtype=torch.bfloat16):
    """The mean of many weights that started at 1, after steps along the same gradient, and the optimizer's state."""
    weight = torch.nn.Parameter(torch.ones(20_000, dtype=dtype))
    optimizer = StochasticAdamW([weight], lr=rate, **(ADAMW | {"weight_decay": 0.0}), seed=0)
    for _ in range(steps):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    return weight.float().mean().item(), optimizer.state[weight]


def test_updates_far_below_the_resolution_are_not_lost():
    """Ten steps of 1e-4 from 1.0, whose neighbours in bfloat16 are 0.996 and 1.008, reach 0.999 on average."""
    mean, _ = moved(1e-4, 10)
    assert mean == pytest.approx(0.999, abs=2e-4)


def test_the_second_moment_falls_again():
    """Rounded to the nearest, a second moment with beta2 = 0.999 would never fall after a large gradient."""
    weight = torch.nn.Parameter(torch.zeros(20_000, dtype=torch.bfloat16))
    optimizer = StochasticAdamW([weight], lr=0.0, **ADAMW, seed=0)
    for gradient in [1.0] * 20 + [0.0] * 200:
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
    expected = (1 - 0.999**20) * 0.999**200
    assert optimizer.state[weight]["exp_avg_sq"].float().mean().item() == pytest.approx(expected, rel=0.01)


def test_the_rounding_does_not_depend_on_torch_s_random_state():
    expected, _ = moved(1e-4, 3)
    torch.manual_seed(123)
    assert moved(1e-4, 3)[0] == expected


def test_weights_and_gradients_may_lie_differently_in_memory():
    plain = torch.nn.Parameter(torch.randn(4, 3, 2, 2, generator=random()))
    last = torch.nn.Parameter(plain.detach().clone().to(memory_format=torch.channels_last))
    for weight in (plain, last):
        optimizer = StochasticAdamW([weight], lr=1e-2, **ADAMW, seed=0)
        weight.grad = torch.randn(4, 3, 2, 2, generator=random(1))
        optimizer.step()
    assert torch.allclose(plain, last, atol=1e-7)


def many(dtype=torch.bfloat16, sizes=((3, 5), (40,), (2, 3, 2, 2), (1,))):
    """Weights with gradients of a first step."""
    weights = [torch.nn.Parameter(torch.randn(size, generator=random(i)).to(dtype)) for i, size in enumerate(sizes)]
    for i, weight in enumerate(weights):
        weight.grad = torch.randn(weight.shape, generator=random(100 + i)).to(dtype)
    return weights


@pytest.mark.parametrize("together", [2**25, 16])  # elements: all of them, and parts of some
def test_weights_that_are_updated_together_are_updated_as_one_by_one(monkeypatch, together):
    """In float32, where nothing is rounded, to the bit; in bfloat16 to a neighbour."""
    monkeypatch.setattr("t2i.optim.optimizers.TOGETHER", together)
    for dtype in (torch.float32, torch.bfloat16):
        alone, grouped = many(dtype), many(dtype)
        groups = [{"params": grouped[:2]}, {"params": grouped[2:], "lr": 0.03}]
        one_by_one = [{"params": alone[:2]}, {"params": alone[2:], "lr": 0.03}]
        optimizers = [
            StochasticAdamW(these, lr=1e-2, **ADAMW, seed=0, foreach=foreach)
            for these, foreach in ((one_by_one, False), (groups, True))
        ]
        for optimizer in optimizers * 2:
            optimizer.step()
        for first, second in zip(alone, grouped, strict=True):
            assert torch.allclose(first.float(), second.float(), rtol=0 if dtype == torch.float32 else 2**-6, atol=0)


def test_a_few_operations_update_hundreds_of_weights():
    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls += not func.is_view
            return func(*args, **(kwargs or {}))

    counts = []
    for number in (10, 300):
        optimizer = StochasticAdamW(many(sizes=[(2, 2)] * number), lr=1e-2, **ADAMW, seed=0, foreach=True)
        optimizer.step()  # makes the moments
        with Count() as count:
            optimizer.step()
        counts.append(count.calls)
    assert counts[0] == counts[1] < 50


def test_a_step_that_is_not_to_be_taken_changes_nothing():
    weights = many()
    optimizer = StochasticAdamW(weights, lr=1e-2, **ADAMW, seed=0, foreach=True)
    optimizer.step()
    kept = [[weight, *list(optimizer.state[weight].values())[1:]] for weight in weights]
    before = [[tensor.clone() for tensor in tensors] for tensors in kept]
    for weight in weights:
        weight.grad = torch.full_like(weight, float("nan"))
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert all(torch.equal(a, b) for old, new in zip(before, kept, strict=True) for a, b in zip(old, new, strict=True))


def test_a_run_may_go_on_with_the_channels_elsewhere():
    """The moments of a checkpoint lie in memory as the weights did."""
    plain = torch.nn.Parameter(torch.randn(4, 3, 2, 2, generator=random()))
    before = StochasticAdamW([plain], lr=1e-2, **ADAMW, seed=0)
    plain.grad = torch.randn(4, 3, 2, 2, generator=random(1))
    before.step()
    turned = torch.nn.Parameter(plain.detach().clone().to(memory_format=torch.channels_last))
    after = StochasticAdamW([turned], lr=1e-2, **ADAMW, seed=0)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    for weight, optimizer in ((plain, before), (turned, after)):
        weight.grad = torch.randn(4, 3, 2, 2, generator=random(2))
        optimizer.step()
    assert torch.allclose(plain, turned, atol=1e-7)


OPTIONS = ["adamw", "adamw8bit", "adafactor", "lion", "prodigy", "schedulefree", "adamw_sr"]


def weights(run):
    files = run.checkpoints.glob("step-000010/*.safetensors")
    return {f"{file.stem}.{name}": value for file in sorted(files) for name, value in load_file(file).items()}


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_teaches_and_resumes_bit_for_bit(train, tmp_path, option):
    chosen = "precision=bf16_sr" if option == "adamw_sr" else f"optimizer={option}"
    uninterrupted = train(tmp_path / "uninterrupted", chosen)
    train(tmp_path / "resumed", chosen, "stop_at=4")
    expected, resumed = weights(uninterrupted), weights(train(tmp_path / "resumed", chosen))
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    lines = uninterrupted.metrics()
    assert lines[-1]["val/loss"] < lines[0]["val/loss"]


@pytest.mark.slow
def test_validation_leaves_a_schedule_free_run_as_it_was(train, tmp_path):
    """Validation swaps its weights for the average and back, although the optimizer's own way back rounds."""
    runs = [
        train(tmp_path / every, "optimizer=schedulefree", f"validate_every={every}", f"sample_every={every}")
        for every in ("0", "2")
    ]
    first, second = (weights(run) for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_average_is_the_one_that_the_optimizer_keeps():
    import schedulefree

    layer = torch.nn.Linear(3, 3)
    trained = hold_weights(layer)
    optimizer = schedulefree.AdamWScheduleFree(list(trained.weights.values()), lr=0.1)
    ema = ScheduleFree()
    ema.track(trained, optimizer)
    for step in range(5):
        layer(torch.randn(2, 3, generator=random(step))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    raw = layer.weight.detach().clone()
    with ema.applied():
        average = layer.weight.detach().clone()
    assert torch.equal(layer.weight, raw)
    optimizer.eval()
    assert torch.equal(layer.weight, average)
    assert not torch.equal(average, raw)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer=schedulefree", "ema=standard"], "averages the weights itself; use ema=schedule_free"),
        (["optimizer=schedulefree", "ema=none"], "averages the weights itself; use ema=schedule_free"),
        (["ema=schedule_free"], "ema=schedule_free is the average of optimizer=schedulefree"),
        (["precision=bf16_sr", "optimizer=adamw"], "rounds to nearest, which loses small updates"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides, message):
    cfg = compose(*overrides)
    make_plan(cfg)
    with pytest.raises(ConfigError, match=message):
        check_the_rest(cfg)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.delitem(sys.modules, "bitsandbytes.optim", raising=False)
    cfg = compose("optimizer=adamw8bit")
    with pytest.raises(ConfigError, match=r"bitsandbytes.*pip install 't2i\[adamw8bit\]'"):
        check_the_rest(cfg)


def test_no_average_takes_the_settings_that_a_model_brings():
    cfg = compose("ema=none", "+ema.decay=0.9999")
    make_plan(cfg)
    check_the_rest(cfg)
