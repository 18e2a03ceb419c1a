"""Begins a run with the state of another: what is taken from its checkpoint, and what begins anew."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file

from t2i.config import ConfigError
from t2i.config.instantiate import build, naming
from t2i.config.keys import belongs, flat
from t2i.config.out_of_memory import lacking
from t2i.experiment.assembly import Experiment
from t2i.experiment.foreign_weights import weights_of_tool
from t2i.experiment.plan import Plan
from t2i.optim.ema import NoEMA
from t2i.optim.new_settings import advance, set_hyperparameters
from t2i.runs import checkpoints
from t2i.runs.config_file import read_config
from t2i.runs.folder import Run
from t2i.runs.fork_rules import METERED, check_fork, open_parent
from t2i.runs.parentage import Parent, complete_steps, release, reserve, reserved
from t2i.runs.records import read_metrics
from t2i.runs.shared_records import copy_records
from t2i.runs.text import one_line

log = logging.getLogger(__name__)
SCHEDULED = ("lr_scheduler", "optimizer.lr")
FILES = {"weights": "denoiser", "ema": "ema"}  # of a checkpoint, by from.only


@dataclass
class Taken:
    """What a run has taken of what it begins with, in words."""

    taken: list[str] = field(default_factory=list)
    anew: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def hold(parent: Parent, run: Run, cfg: DictConfig, plan: Plan) -> dict[str, Any]:
    """Keep the parent's checkpoint from vanishing, and refuse it if it is damaged, or can't be gone on from.

    Returns what run.json says of the origin.
    """
    changed = check_fork(parent, flat(run.config))
    if parent.only is None:
        _check_optimizer(parent, cfg, changed)
        _check_early_stop(parent, plan, changed)
    _refuse_damaged(parent, reserve(parent, run.folder), run.folder)
    return parent.record(run.folder)


def _refuse_damaged(parent: Parent, checkpoint: Path, folder: Path) -> None:
    if (reason := checkpoints.damage(checkpoint)) is not None:
        release(folder)
        others = [str(step) for step in complete_steps(parent.folder) if step != parent.step]
        held = f"choose another, of step {', '.join(others)}" if others else "it has no other"
        raise ConfigError(f"from={parent.asked}: the checkpoint of step {parent.step} is damaged ({reason}); {held}")


def begin(experiment: Experiment, run: Run) -> int | None:
    """Take what the run begins with; returns the step from which it goes on, None if it begins at step 0."""
    asked, found = experiment.cfg["from"].run, Taken()
    parent = open_parent(experiment.cfg, run.folder, again=True)
    if parent is None:
        state = weights_of_tool(str(asked), experiment)
        _take_weights(experiment, state, str(asked))
        found.taken, found.anew = ["weights"], ["everything else"]
        log.info("begins with the weights of %s, and everything else anew", asked)
        run.update(parent={"weights": str(asked)})
        return None
    parent = replace(parent, step=gather_object([parent.step])[0])  # the newest may be another by now
    checkpoint = reserved(run.folder, parent.step)
    if not checkpoint.is_dir():
        checkpoint = parent.checkpoint
        _refuse_damaged(parent, checkpoint, run.folder)
    changed = check_fork(parent, flat(run.config))
    try:
        if parent.only is None:
            _take_state(experiment, checkpoint, changed, found)
        else:
            state = load_file(checkpoint / f"{FILES[parent.only]}.safetensors")
            state.pop("updates", None)
            _take_weights(experiment, state, parent.name)
            found.taken = ["averaged weights" if parent.only == "ema" else "weights"]
            found.anew = ["everything else, from step 0 on"]
    except ConfigError:
        raise
    except Exception as error:  # of pickle, zipfile, PyTorch or a part; or the parent has removed it
        if lacking(error):  # no fault of the checkpoint
            raise
        raise ConfigError(
            f"from={parent.asked}: the checkpoint of step {parent.step} can't be loaded ({one_line(error)}); "
            f"choose another of its steps ({', '.join(map(str, complete_steps(parent.folder))) or 'it has none'})"
        ) from error
    if parent.only is None:
        _note_data(parent, run, experiment.cfg, changed, found)
        if run.writes:
            same_battery = run.info.get("battery") == parent.info.get("battery")
            copied = copy_records(parent, checkpoint, run, same_battery, samples=not _samples_differ(parent, run))
            (found.taken if copied else found.anew).append("records" + ("" if same_battery else " without validations"))
    _say(parent, run, changed, found)
    return parent.step if parent.only is None else None


def _take_weights(experiment: Experiment, state: Mapping[str, torch.Tensor], name: str) -> None:
    """Begin with these weights, which have to be those that the run trains, by name and shape."""
    trained, optimizer = experiment.optimization.trained, experiment.optimization.lr_scheduler.optimizer
    own = {key: tuple(weight.shape) for key, weight in trained.weights.items()}
    given = {key: tuple(weight.shape) for key, weight in state.items()}
    if own != given:
        key = next(key for key in sorted(own | given) if own.get(key) != given.get(key))
        raise ConfigError(
            f"the weights of {name} are not those that this run trains: {key} is {_shape(given.get(key))} there and "
            f"{_shape(own.get(key))} here; use its model, its adapter, adapter.rank and adapted_layers"
        )
    experiment.state["denoiser"].load_state_dict(dict(state))
    experiment.optimization.ema.track(trained, optimizer)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else "×".join(map(str, shape)) or "a number"


def _take_state(experiment: Experiment, checkpoint: Path, changed: Mapping[str, str], found: Taken) -> None:
    """Load all that the changed settings allow to be taken."""
    optimization, parts = experiment.optimization, dict(experiment.state)
    optimizer, schedule = optimization.optimizer, optimization.lr_scheduler
    fresh = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    before = torch.load(checkpoint / "lr_scheduler.pt", map_location="cpu", weights_only=True)["_last_lr"][0]
    if isinstance(experiment.plan.ema, NoEMA):
        del parts["ema"]
    if any(belongs(key, METERED) for key in changed):
        del parts["meter"]
        found.anew.append("meter")
    if "scaler" in parts and not (checkpoint / "scaler.pt").is_file():
        del parts["scaler"]
        found.anew.append("loss scale")
    if rescheduled := any(belongs(key, SCHEDULED) for key in changed):
        del parts["lr_scheduler"]
    step = checkpoints.load(checkpoint, parts)
    names = {"denoiser": "weights", "optimizer": "optimizer", "ema": "average", "meter": "meter"}
    found.taken += [names[part] for part in names if part in parts]
    changed_names = [key.removeprefix("optimizer.") for key in changed if belongs(key, ("optimizer",))]
    set_hyperparameters(optimizer, fresh, [name for name in changed_names if name != "lr"])
    if rescheduled:
        advance(schedule, optimizer, fresh, step)
        now = schedule.get_last_lr()[0]
        found.anew.append("learning-rate schedule")
        found.notes.append(
            f"learning rate from step {step} on: {now:.4g} by the schedule of this run; it was {before:.4g} there"
        )
    else:
        found.taken.append("learning-rate schedule")


def _check_optimizer(parent: Parent, cfg: DictConfig, changed: Mapping[str, str]) -> None:
    """Refuse settings of the optimizer that its state does not have, by a step of both with a dummy weight."""
    names = [key for key in changed if belongs(key, ("optimizer",)) and key != "optimizer.lr"]
    if not names:
        return
    before: Any = OmegaConf.create(read_config(parent.folder))
    before.allowed_targets = cfg.allowed_targets
    kept, state = zip(*(_rehearsed(settings) for settings in (before, cfg)), strict=True)
    for key in names:
        if key.removeprefix("optimizer.") not in kept[1]:
            raise ConfigError(
                f"{changed[key]}: {parent.name} has a state in which this can't be changed; leave it as it was"
            )
    if state[0] != state[1]:
        missing = ", ".join(sorted(state[0] ^ state[1]))
        raise ConfigError(
            f"{', '.join(changed[key] for key in names)} can't be changed from {parent.name} on: the optimizer's state "
            f"would have other parts ({missing}); leave it, or take the weights alone, with from.only=weights"
        )


def _rehearsed(cfg: DictConfig) -> tuple[set[str], set[str]]:
    """The settings of an optimizer's groups, and the parts of its state after a step."""
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    with naming("optimizer"):
        optimizer = build(cfg, "optimizer")([weight])
        if type(optimizer).__module__.startswith("torch.optim"):  # others may need a GPU to take a step
            weight.grad = torch.zeros_like(weight)
            optimizer.step()
    return set(optimizer.param_groups[0]), set(optimizer.state.get(weight, {}))


def _check_early_stop(parent: Parent, plan: Plan, changed: Mapping[str, str]) -> None:
    if any(belongs(key, ("validation",)) for key in changed):
        return
    lines = [line for line in read_metrics(parent.folder).values() if line["step"] <= parent.step]
    if (verdict := plan.early_stop.verdict(lines)) is not None:
        raise ConfigError(
            f"early_stop.patience={verdict['patience']} would end the run where it begins: {verdict['metric']} of "
            f"{parent.name} has not improved since step {verdict['best_step']}; use early_stop.patience=null, a "
            "larger one, or an earlier step"
        )


def _note_data(parent: Parent, run: Run, cfg: DictConfig, changed: Mapping[str, str], found: Taken) -> None:
    """Say where the data and their draws go on."""
    position = parent.step * cfg.batch_size
    if run.info.get("data_fingerprint") == parent.info.get("data_fingerprint"):
        found.taken.append("position in the data")
    else:
        found.anew.append("order of the data")
        found.notes.append(f"the images or captions are others: their own order goes on at example {position}")
    if "seed" in changed:
        found.notes.append(f"order, noise and all other draws are those of seed {cfg.seed} from step {parent.step} on")
    else:
        found.taken.append("draws")


def _samples_differ(parent: Parent, run: Run) -> bool:
    before, now = parent.config, flat(run.config)
    return any(before.get(key) != now.get(key) for key in before | now if belongs(key, ("samples",)))


def _say(parent: Parent, run: Run, changed: Mapping[str, str], found: Taken) -> None:
    """Log what was taken, and note it in run.json."""
    begins = f"goes on from step {parent.step} of" if parent.only is None else f"begins with step {parent.step} of"
    log.info("%s %s: takes its %s", begins, parent.folder, ", ".join(found.taken))
    if found.anew:
        log.info("begins anew: %s", ", ".join(found.anew))
    if changed:
        log.info("changed: %s", ", ".join(changed.values()))
    for note in found.notes:
        log.info("%s", note)
    origin = dict(run.info.get("parent", {}))
    run.update(parent=origin | {"taken": found.taken, "anew": found.anew, "changed": sorted(changed)})
