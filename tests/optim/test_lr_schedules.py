import torch
from hypothesis import given
from hypothesis import strategies as st

from t2i.optim.lr_schedules import warmup_stable_decay


def rates(steps, warmup, decay_share):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = warmup_stable_decay(optimizer, steps, warmup, decay_share)
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return [*rates, schedule.get_last_lr()[0]]


@given(st.integers(1, 60), st.integers(0, 20), st.floats(0, 1))
def test_it_rises_stays_and_falls_to_zero(steps, warmup, decay_share):
    values = rates(steps, warmup, decay_share)
    top = values.index(max(values))
    assert values[:top] == sorted(values[:top])
    assert values[top:] == sorted(values[top:], reverse=True)
    assert round(decay_share * steps) == 0 or values[-1] == 0


def test_until_the_decay_a_longer_run_is_the_same_run():
    assert rates(100, 10, 0.3)[:70] == rates(200, 10, 0.3)[:70]
    assert rates(100, 10, 0.3)[10:70] == [1.0] * 60
