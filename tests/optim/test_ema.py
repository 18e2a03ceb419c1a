import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t2i.optim.ema import EMA
from t2i.optim.trained_weights import hold_weights


def trained(ema, updates):
    """A layer whose weight takes the values `updates`, averaged by `ema`."""
    layer = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.fill_(0.0)
    ema.track(hold_weights(layer), None)
    for value in updates:
        with torch.no_grad():
            layer.weight.fill_(value)
        ema.update()
    return layer


@settings(deadline=None)
@given(st.floats(0, 0.999), st.lists(st.floats(-10, 10), min_size=1, max_size=20))
def test_without_warmup_it_is_the_closed_form(decay, values):
    ema = EMA(decay, warmup=False)
    trained(ema, values)
    expected = sum((1 - decay) * decay ** (len(values) - 1 - i) * value for i, value in enumerate(values))
    assert ema.shadow["weight"].item() == pytest.approx(expected, abs=1e-9)


def test_with_warmup_it_equals_diffusers():
    from diffusers.training_utils import EMAModel

    layer = torch.nn.Linear(3, 3)
    theirs, ours = EMAModel(layer.parameters(), decay=0.9), EMA(0.9, warmup=True)
    ours.track(hold_weights(layer), None)
    theirs.optimization_step = 1  # the first update of Diffusers has no effect
    for _ in range(30):
        with torch.no_grad():
            layer.weight.add_(torch.randn(3, 3))
        ours.update()
        theirs.step(layer.parameters())
    assert torch.allclose(ours.shadow["weight"], theirs.shadow_params[0], atol=1e-6)


def test_applied_swaps_the_weights_and_restores_them():
    ema = EMA(0.5, warmup=False)
    layer = trained(ema, [1.0])
    with ema.applied():
        assert layer.weight.item() == 0.5
    assert layer.weight.item() == 1.0


def test_state_survives_a_round_trip():
    first, second = EMA(0.9), EMA(0.9)
    trained(first, [1.0, 2.0])
    trained(second, [])
    second.load_state_dict(first.state_dict())
    assert second.updates == 2
    assert torch.equal(first.shadow["weight"], second.shadow["weight"])


def test_decay_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"ema.decay=1.0 must be in \[0, 1\)"):
        EMA(1.0)
