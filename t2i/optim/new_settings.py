"""New settings for an optimizer and a learning-rate schedule that go on from the state of other ones."""

import warnings
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def set_hyperparameters(optimizer: Optimizer, fresh: list[dict[str, Any]], names: list[str]) -> None:
    """Give the optimizer's groups these settings of the new run; the others, and what is state, stay as loaded.

    fresh: the settings of each group as they were built, before the state was loaded.
    """
    for group, own in zip(optimizer.param_groups, fresh, strict=True):
        group |= {name: own[name] for name in names}


def advance(schedule: LRScheduler, optimizer: Optimizer, fresh: list[dict[str, Any]], step: int) -> None:
    """Bring a new schedule to where it would be after `step` steps, whatever kind it is: by taking them.

    fresh: as for `set_hyperparameters`. Nothing was loaded into the schedule.
    """
    of_optimizer = optimizer.defaults.keys() - {"lr"}  # the rest is of the schedule
    for group, own in zip(optimizer.param_groups, fresh, strict=True):
        group |= {name: value for name, value in own.items() if name not in of_optimizer}
    with warnings.catch_warnings():  # that the optimizer has not taken steps
        warnings.simplefilter("ignore", UserWarning)
        for _ in range(step):
            schedule.step()
