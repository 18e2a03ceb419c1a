"""`t2i.train(...)` and `t2i.sweep(...)`: the commands of the same names, from Python."""

import os
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from t2i.api.process import call
from t2i.api.run import Run, Runs, open_run, open_runs
from t2i.config import ConfigError
from t2i.config.compose import compose
from t2i.config.resolvers import in_multirun, now
from t2i.config.typed import as_typed
from t2i.runs.inheritance import with_parents

SWEEPS = ("-m", "--multirun")


def train(*overrides: str, show: bool = True, **named: Any) -> Run:
    """Train one run, as `t2i train OVERRIDES` does; returns it when it has ended.

        run = t2i.train("loss=minsnr", "steps=100", "run=mine")

    The same call with the same `run` goes on from the last checkpoint, or returns the finished run. show: print log and
    progress. It runs in a process of its own. Raises ConfigError, with the message of the command, for settings that
    can't be used, RunFailed for what goes wrong on the way, and KeyboardInterrupt if it was interrupted, which leaves a
    run that can be gone on with.
    """
    _refuse_words(overrides, named)
    if any(word in SWEEPS for word in overrides):
        raise ConfigError("t2i.train trains one run; for several use t2i.sweep, without -m")
    words = with_parents(as_typed(overrides))
    if (name := _typed("run", words)) is None:
        name = _new_name(words)
        overrides = (*overrides, f"run={name}")
    call(["train", *overrides], show, advice=f't2i.train(..., "run={name}") goes on from its last checkpoint')
    return open_run(Path(in_multirun(name)))


def sweep(*overrides: str, show: bool = True, **named: Any) -> Runs:
    """Train every run of a sweep, as `t2i train -m OVERRIDES` does; returns its runs when all have ended.

    t2i.sweep("loss.snr_gamma=1,5", "seed=0,1", "sweep=gamma")
    """
    _refuse_words(overrides, named)
    words = [word for word in overrides if word not in SWEEPS]
    if (name := _typed("sweep", as_typed(words))) is None:
        words.append(f"sweep={(name := now())}")
    call(["train", "-m", *words], show, advice=f't2i.sweep(..., "sweep={name}") goes on with it')
    return open_runs(Path(in_multirun(name)))


def _refuse_words(overrides: tuple[str, ...], named: dict[str, Any]) -> None:
    if named:
        texts = ", ".join(f'"{key}={value}"' for key, value in named.items())
        raise ConfigError(f"settings are texts, as on the command line, since their names have dots: write {texts}")
    wrong = next((word for word in overrides if not isinstance(word, str)), None)
    if wrong is not None:
        raise ConfigError(f'settings are texts, as on the command line: "steps=100", not {wrong!r}')


def _typed(key: str, words: list[str]) -> str | None:
    """The value of a setting that is typed, the last one if there are several."""
    for word in reversed(words):
        if word.lstrip("+").startswith(f"{key}="):
            try:
                value = OverridesParser.create().parse_override(word).value()
            except HydraException:
                return None
            return None if value is None else str(value)
    return None


def _new_name(words: list[str]) -> str:
    """The folder that the command would choose. What is wrong with the settings, the command says."""
    try:
        choices = compose(words, return_hydra_config=True).hydra.runtime.choices
        return os.path.join(f"{choices['dataset']}-{choices['loss']}", now())
    except (ConfigError, HydraException):
        return now()
