"""Averages of any length are combined from snapshots, to the precision that their profiles say."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from t2i.config import ConfigError
from t2i.optim.ema import exported_weights
from t2i.optim.post_hoc import LONGEST, PostHoc, combination, exponent
from t2i.optim.trained_weights import hold_weights
from t2i.runs.snapshots import combine

STEPS = 480


def post_hoc(lengths=(0.05, 0.1), snapshots=24, dtype="float32"):
    return PostHoc(lengths, exported=lengths[-1], snapshots=snapshots, dtype=dtype)


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_the_exponent_gives_the_width(sigma_rel):
    """The standard deviation of τ / t under the density (γ + 1) τ^γ / t^(γ + 1)."""
    gamma = exponent(sigma_rel)
    mean, square = (gamma + 1) / (gamma + 2), (gamma + 1) / (gamma + 3)
    assert np.sqrt(square - mean**2) == pytest.approx(sigma_rel, rel=1e-6)


def test_the_papers_exponents():
    assert exponent(0.05) == pytest.approx(16.97, abs=0.01)
    assert exponent(0.10) == pytest.approx(6.94, abs=0.01)


def test_the_average_weighs_step_n_by_the_integral_of_the_profile_over_it():
    layer = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    average = post_hoc()
    average.track(hold_weights(layer), None)
    values = np.random.default_rng(0).normal(size=50)
    for value in values:
        layer.weight.data.fill_(value)
        average.update()
    edges = (np.arange(51) / 50) ** (exponent(0.1) + 1)
    assert average.averages[0.1]["weight"].item() == pytest.approx(np.diff(edges) @ values, abs=1e-12)


def trained(tmp_path, steps, tracked, snapshots, dtype="float32"):
    """Fit a small network; returns its tracked averages and the snapshots' files with their lengths."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    kept, directly = post_hoc(snapshots=snapshots, dtype=dtype), [post_hoc((0.06, length)) for length in tracked]
    weights = hold_weights(net)
    for average in (kept, *directly):
        average.track(weights, optimizer)
    files, due = {}, kept.snapshot_steps(steps)
    for step in range(1, steps + 1):
        x = torch.randn(8, 4)
        optimizer.zero_grad()
        (net(x) - x.sin().sum(1, keepdim=True) - 0.3 * torch.randn(8, 1)).square().mean().backward()
        optimizer.step()
        for average in (kept, *directly):
            average.update()
        if step in due:
            files[step] = tmp_path / f"step-{step:06d}.safetensors"
            save_file({name: x.clone() for name, x in kept.snapshot(kept.state_dict()).items()}, files[step])
    return flat(weights.weights), [flat(each.averages[each.exported]) for each in directly], files


def flat(weights):
    return torch.cat([weights[name].detach().flatten() for name in sorted(weights)])


def reconstructed(files, wanted):
    steps = np.repeat(list(files), 2)
    lengths = np.tile([0.05, 0.1], len(files))
    coefficients, error = combination(steps, lengths, wanted, steps[-1])
    pairs = coefficients.reshape(-1, 2)
    stored = [(file, [(0.05, [pair[0]]), (0.1, [pair[1]])]) for file, pair in zip(files.values(), pairs, strict=True)]
    (weights,) = combine(stored)
    return flat(weights), error


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_reconstructed_averages_equal_those_tracked_directly(tmp_path, dtype):
    """Within 1 % of what averaging changes, from 24 snapshots; the averages that were kept themselves exactly."""
    tracked = [0.05, 0.07, 0.1, 0.15, 0.2]
    raw, directly, files = trained(tmp_path, STEPS, tracked, snapshots=24, dtype=dtype)
    for length, expected in zip(tracked, directly, strict=True):
        found, profile_error = reconstructed(files, length)
        error = (found - expected).norm() / (expected - raw).norm()
        print(f"{dtype} {length}: {error:.2e} of what averaging changes, profile {profile_error:.2e}")
        assert error < (1e-5 if length in (0.05, 0.1) and dtype == "float32" else 0.01)


def test_more_snapshots_reach_further():
    def error(snapshots, length):
        steps = np.repeat([round(STEPS * (i + 1) / snapshots) for i in range(snapshots)], 2)
        return combination(steps, np.tile([0.05, 0.1], snapshots), length, STEPS)[1]

    for length in (0.03, 0.15, 0.25):
        assert error(12, length) > error(24, length) > error(48, length)
    assert error(24, 0.1) < 1e-6


def test_weights_that_do_not_move_are_reproduced():
    steps = np.repeat(np.arange(10, 170, 10), 2)
    coefficients, _ = combination(steps, np.tile([0.05, 0.1], 16), 0.22, 160)
    assert coefficients.sum() == pytest.approx(1, abs=1e-9)


def test_its_state_survives_a_round_trip_and_holds_the_exported_average_by_name():
    layer = torch.nn.Linear(3, 3)
    first, second = post_hoc(), post_hoc()
    for average in (first, second):
        average.track(hold_weights(layer), None)
    layer.weight.data.add_(1)
    first.update()
    layer.weight.data.add_(1)
    first.update()
    second.load_state_dict({name: tensor.clone() for name, tensor in first.state_dict().items()})
    for average in (first, second):
        average.update()
    assert all(torch.equal(first.state_dict()[name], second.state_dict()[name]) for name in first.state_dict())
    exported = exported_weights(first.state_dict())
    assert exported.keys() == {"weight", "bias"}
    assert torch.equal(exported["weight"], first.averages[0.1]["weight"])


def test_snapshots_are_spread_evenly_and_end_with_the_run():
    assert sorted(post_hoc(snapshots=4).snapshot_steps(10)) == [2, 5, 8, 10]
    assert sorted(post_hoc(snapshots=24).snapshot_steps(3)) == [1, 2, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lengths": [0.1]}, "two different widths"),
        ({"lengths": [0.1, 0.3]}, "is not the relative width"),
        ({"exported": 0.2}, "must be one of ema.lengths"),
        ({"snapshots": 2}, "ema.snapshots=2"),
        ({"dtype": "int8"}, "choose from float32, float16"),
    ],
)
def test_settings_that_can_not_work(settings, message):
    with pytest.raises(ConfigError, match=message):
        PostHoc(**({"lengths": [0.05, 0.1], "exported": 0.1, "snapshots": 24, "dtype": "float32"} | settings))


def test_the_longest_average_is_the_mean():
    assert exponent(LONGEST - 1e-6) == pytest.approx(0, abs=1e-3)
