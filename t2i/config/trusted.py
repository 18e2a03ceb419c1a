"""What a `_target_` may name: each group of conf/ says which classes and functions it takes.

A configuration is often somebody else's. So a name is compared with this table before anything is imported, and what
the name leads to is compared again before it is called.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

from t2i.config import CONF, ConfigError
from t2i.config.moved_targets import MOVED

NAME = re.compile(r"[a-z_]\w*(\.[a-z_]\w*)+", re.ASCII | re.IGNORECASE)


class Family(NamedTuple):
    """The classes of libraries that users choose from: the subclasses of `base` that `modules` define."""

    base: str
    modules: tuple[str, ...]  # with the modules below them
    shortcuts: tuple[str, ...] = ()  # further modules from which, but not from below which, a class may be named


class Rule(NamedTuple):
    """What a group may call besides the classes and functions that its files in conf/ name."""

    names: tuple[str, ...] = ()  # exact names
    family: Family | None = None
    nested: Mapping[str, str] = MappingProxyType({})  # setting -> the group that its value belongs to
    partial: bool = False  # whether the group's `_target_` gets its last arguments later
    several: bool = False  # whether the group has any number of components, by their options' names


RULES = {
    "error": Rule(),
    "loss": Rule(nested={"error": "error"}),
    "timesteps": Rule(nested={"distribution": "timesteps"}),
    "scheduler": Rule(family=Family("diffusers.SchedulerMixin", ("diffusers.schedulers",), ("diffusers",))),
    "lr_scheduler": Rule(
        names=tuple(
            f"diffusers.optimization.{name}"
            for name in (
                *("get_constant_schedule", "get_constant_schedule_with_warmup", "get_piecewise_constant_schedule"),
                *("get_linear_schedule_with_warmup", "get_cosine_schedule_with_warmup", "get_scheduler"),
                "get_cosine_with_hard_restarts_schedule_with_warmup",
                "get_polynomial_decay_schedule_with_warmup",
            )
        ),
        family=Family("torch.optim.lr_scheduler.LRScheduler", ("torch.optim.lr_scheduler",)),
        partial=True,
    ),
    "optimizer": Rule(
        names=("transformers.Adafactor",),
        family=Family(
            "torch.optim.Optimizer",
            (
                *("torch.optim", "bitsandbytes.optim", "torchao.optim", "transformers.optimization"),
                *("schedulefree", "prodigyopt", "lion_pytorch"),
            ),
        ),
        partial=True,
    ),
    "ema": Rule(),
    "adapter": Rule(),
    "tracker": Rule(),
    "model": Rule(),
    "dataset": Rule(),
    "metric": Rule(several=True),
    "backend": Rule(),
}
ELSEWHERE = Rule()  # what settings outside of the groups may call: nothing

EXTRAS = {  # package -> the extra of t2i that installs it
    "bitsandbytes": "adamw8bit",
    "prodigyopt": "optimizers",
    "schedulefree": "optimizers",
    "lion_pytorch": "optimizers",
}


def rule_of(group: str | None) -> Rule:
    return RULES.get(group or "", ELSEWHERE)


@cache
def names_of(group: str | None) -> frozenset[str]:
    """The exact names that a group may call: those that its files in conf/ give its `_target_`, and a few more."""
    if group not in RULES:
        return frozenset()
    names = set(RULES[group].names)
    for file in (CONF / group).glob("*.yaml"):
        node = group
        for line in file.read_text(encoding="utf-8").splitlines():
            if key := re.match(r"(\w+):", line):
                node = key[1] if key[1] != "_target_" else group
            if (target := re.match(r"(  )?_target_: *(\S+)", line)) and node == group:
                names.add(target[2])
    return frozenset(names)


def check_name(key: str, target: Any, group: str | None, allowed: Sequence[str]) -> None:
    """Refuse a `_target_` by its name alone. Nothing is imported.

    key: of the `_target_`. group: that it belongs to. allowed: modules that the command line allows.
    """
    if not isinstance(target, str) or not NAME.fullmatch(target) or "__" in target:
        raise ConfigError(f"{key}={target} is not the name of a class or function, such as package.module.Name")
    if target in MOVED:
        raise ConfigError(f"{key}={target} has moved to {MOVED[target]}; use the new name")
    family = rule_of(group).family
    if target not in names_of(group) and not _in_family(target, family) and not _within(target, allowed):
        raise _refused(key, target, group)


def locate(key: str, target: str, group: str | None, allowed: Sequence[str]) -> Callable[..., Any]:
    """The class or function that `target` names. Raises ConfigError if the group may not call it."""
    check_name(key, target, group, allowed)
    rule = rule_of(group)
    try:
        if target in names_of(group):
            return _attribute(target)
        if rule.family is not None and _in_family(target, rule.family):
            found = _attribute(target)
            if isinstance(found, type) and _is_member(found, rule.family):
                return found
            if not _within(target, allowed):
                raise _refused(key, target, group)
        modules = [module for module in allowed if _within(target, [module])]
        found = next((found for module in modules if (found := _defined_in(module, target)) is not None), None)
    except ConfigError:
        raise
    except Exception as error:  # importing somebody's module can raise anything
        extra = EXTRAS.get(target.partition(".")[0])
        remedy = f"; pip install 't2i[{extra}]'" if extra else ""
        raise ConfigError(f"{key}={target} can't be imported: {error}{remedy}") from error
    if found is None or not callable(found):
        raise ConfigError(
            f"{key}={target} is not a class or function that {' or '.join(modules)} defines; name the module that does"
        )
    return found


def _refused(key: str, target: str, group: str | None) -> ConfigError:
    module, _, name = target.rpartition(".")
    if target.startswith("t2i."):
        names = [known.rpartition(".")[2] for known in sorted(names_of(group))]
        choice = f"{group} takes {', '.join(names)}" if names else "no class or function is called there"
        return ConfigError(f"{key}={target}: a configuration can't call {name} here; {choice}")
    return ConfigError(
        f"{key}={target} calls code outside of t2i; if you trust it, allow it on the command line: "
        f"'allowed_targets=[{module}]'"
    )


def _within(name: str, modules: Sequence[str]) -> bool:
    """Whether a dotted name lies below one of the modules."""
    return name.startswith(tuple(f"{module}." for module in modules))


def _in_family(target: str, family: Family | None) -> bool:
    """Whether a name could be that of a class of the family."""
    if family is None:
        return False
    return target.rpartition(".")[0] in family.shortcuts or _within(target, family.modules)


def _is_member(found: type, family: Family) -> bool:
    base = _attribute(family.base)
    return issubclass(found, base) and found is not base and _within(f"{found.__module__}.", family.modules)


def _attribute(target: str) -> Any:
    """What a module defines or imports under a name; attributes of attributes are not followed."""
    module, _, name = target.rpartition(".")
    return getattr(import_module(module), name)


def _defined_in(module: str, target: str) -> Any:
    """What `target` names below a module of the user's; None if the way there leads out of the module."""
    found: Any = import_module(module)
    path = module
    for part in target.removeprefix(f"{module}.").split("."):
        path = f"{path}.{part}"
        if isinstance(found, ModuleType) and not hasattr(found, part):
            import_module(path)
        found = getattr(found, part)
        home = found.__name__ if isinstance(found, ModuleType) else getattr(found, "__module__", None)
        if not isinstance(home, str) or not _within(f"{home}.", [module]):
            return None
    return found
