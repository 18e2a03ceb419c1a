"""Runs that are sent a signal at a chosen moment."""

import os
from pathlib import Path

import torch

from helpers.runs import compose
from t2i.experiment.plan import make_plan
from t2i.experiment.run import run


def train_and_die(folder, overrides, module, function, call, signum):
    """In a process of its own: a run that is sent the signal at this call of the function."""
    owner = __import__(module, fromlist=[function])
    original, calls = getattr(owner, function), 0

    def fatal(*arguments, **keywords):
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signum)
        return original(*arguments, **keywords)

    setattr(owner, function, fatal)
    torch.set_num_threads(1)
    cfg = compose(*overrides)
    run(cfg, make_plan(cfg), Path(folder), overrides)
