"""A learning-rate schedule that begins in the middle."""

import pytest
import torch
from torch.optim import lr_scheduler

from t2i.optim.lr_schedules import warmup_stable_decay
from t2i.optim.new_settings import advance, set_hyperparameters


def cosine(optimizer):
    from diffusers.optimization import get_cosine_schedule_with_warmup

    return get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=4, num_training_steps=40)


SCHEDULES = {
    "cosine": cosine,
    "wsd": lambda optimizer: warmup_stable_decay(optimizer, 40, 4, 0.3),
    "recursive": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 40),
    "with momentum": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=41),
}


def made(name, lr=0.1):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=lr)
    return optimizer, SCHEDULES[name](optimizer)


def groups(optimizer):
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


@pytest.mark.parametrize("name", SCHEDULES)
def test_it_goes_on_as_if_it_had_been_there_from_the_start(name):
    whole, schedule = made(name)
    expected = []
    for _ in range(40):
        whole.step()
        schedule.step()
        expected.append(whole.param_groups[0]["lr"])
    other, later = made(name)
    fresh = groups(other)
    other.load_state_dict(made("cosine", lr=3.0)[0].state_dict())  # of the parent, with its own learning rate
    advance(later, other, fresh, 20)
    assert other.param_groups[0]["lr"] == expected[19] == later.get_last_lr()[0]
    got = []
    for _ in range(20):
        other.step()
        later.step()
        got.append(other.param_groups[0]["lr"])
    assert got == expected[20:]


def test_only_changed_settings_replace_those_of_the_loaded_state():
    """Others may be state, as the count of steps that schedule-free optimizers keep in their groups."""
    optimizer, _ = made("cosine")
    fresh = groups(optimizer)
    loaded = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=3.0, betas=(0.5, 0.6), weight_decay=0.7)
    optimizer.load_state_dict(loaded.state_dict())
    set_hyperparameters(optimizer, fresh, ["betas"])
    (group,) = groups(optimizer)
    assert (group["betas"], group["weight_decay"]) == ((0.9, 0.999), 0.7)
