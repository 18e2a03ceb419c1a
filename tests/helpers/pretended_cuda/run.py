"""Trains on the pretended GPU: a JSON list of [FOLDER, OVERRIDES] in, for each a JSON list of its waits out.

python -m helpers.pretended_cuda.run, in a process of its own: PyTorch must not have been imported.
"""

import dataclasses
import functools
import json
import logging
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import t2i
import t2i.experiment.run as experiment
from helpers.pretended_cuda.device import Watch, pretended
from helpers.runs import compose
from t2i.experiment.plan import make_plan
from t2i.models.adapter import Adapter
from t2i.training.meters import Meter


def named(function: Callable, during: str, watch: Watch) -> Callable:
    """The function, during which waits are noted under a name."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        before, watch.during = watch.during, during
        try:
            return function(*args, **kwargs)
        finally:
            watch.during = before

    return wrapped


def train(folder: str, overrides: list[str]) -> dict[str, Any]:
    """What one run made the host wait for, or how it failed."""
    with pretended(Path(t2i.__file__).parent) as watch:
        originals = experiment.hooks, experiment.train, Adapter.export, Meter.step
        asking = {name: getattr(Meter, name) for name in ("gather", "read", "state_dict")}

        def hooks(*args: Any) -> Any:
            made = originals[0](*args)
            names = ("validate", "sample", "evaluate", "log", "snapshot", "save")
            return dataclasses.replace(made, **{name: named(getattr(made, name), name, watch) for name in names})

        def step(*args: Any) -> None:
            originals[3](*args)
            watch.during = "step"  # in the first one, networks make tables that they keep

        experiment.hooks, experiment.train, Meter.step = hooks, named(originals[1], "first step", watch), step
        for name, original in asking.items():
            setattr(Meter, name, named(original, "log", watch))
        Adapter.export = lambda *args: None
        try:
            cfg = compose(*overrides)
            experiment.run(cfg, make_plan(cfg), Path(folder), overrides)
            failure = None
        except Exception:
            failure = traceback.format_exc()
        finally:
            experiment.hooks, experiment.train, Adapter.export, Meter.step = originals
            for name, original in asking.items():
                setattr(Meter, name, original)
    return {"waits": watch.waits, "failure": failure}


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    torch.set_num_threads(1)
    for folder, overrides in json.load(sys.stdin):
        print(json.dumps(train(folder, overrides)), flush=True)
