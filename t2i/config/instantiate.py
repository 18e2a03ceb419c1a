"""The one place where a configuration becomes objects: each group's `_target_`, called with the group's settings."""

import inspect
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from t2i.config import ConfigError
from t2i.config.keys import flat
from t2i.config.out_of_memory import lacking
from t2i.config.resolvers import refusal, restrict
from t2i.config.trusted import RULES, check_name, locate, rule_of
from t2i.config.values import check_values

MARKS = ("_target_", "_partial_")  # the keys of a component that are not its settings
REFUSED_MARKS = ("_args_", "_convert_", "_recursive_")  # further ones that Hydra knows, and that t2i does not need


def resolve(cfg: DictConfig) -> Any:
    """A configuration, or a part of one, as plain containers, with all interpolations resolved.

    Raises ConfigError for an interpolation that can't be resolved, or that a configuration may not hold.
    """
    restrict()
    try:
        return OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        reason = refusal(error) or str(error).partition("\n")[0]
        raise ConfigError(f"{error.full_key}: {reason}" if error.full_key else reason) from error


def resolve_once(cfg: DictConfig) -> DictConfig:
    """The same configuration without interpolations, so that what was checked is what is used."""
    plain = resolve(cfg)
    check_values(plain)
    if again := [key for key, value in flat(plain).items() if "${" in str(value)]:
        raise ConfigError(f"{again[0]} still holds ${{ when it is resolved; leave out the ${{")
    return OmegaConf.create(plain, flags={"struct": True})


def check_targets(cfg: DictConfig) -> None:
    """Refuse every `_target_` that its group does not take, by name, before anything is imported."""
    allowed = _allowed(cfg)
    for group, node in resolve(cfg).items():
        if rule_of(group).several:
            for name, component in node.items() if isinstance(node, dict) else ():
                _check_names(component, f"{group}.{name}", group, allowed)
        else:
            _check_names(node, str(group), group if group in RULES else None, allowed)


def check_signature(cfg: DictConfig, group: str) -> None:
    """Refuse a component, or one in it, whose `_target_` does not take its settings. Nothing is called."""
    node = _component(cfg, group)
    if missing := OmegaConf.missing_keys(cfg[group]):
        raise ConfigError(f"{', '.join(sorted(missing))} must be given")
    _check_settings(node, group, group, _allowed(cfg))


def _check_settings(node: dict[str, Any], key: str, group: str | None, allowed: Sequence[str]) -> None:
    signature = inspect.signature(locate(f"{key}._target_", node["_target_"], group, allowed))
    try:
        signature.bind_partial(**{name: None for name in node if not str(name).startswith("_")})
    except TypeError as error:
        known = ", ".join(name for name in signature.parameters if name not in ("self", "args", "kwargs"))
        raise ConfigError(f"{key}: {node['_target_']} takes no such setting ({error}); it takes {known}") from error
    for name, inner in rule_of(group).nested.items():
        parameter = signature.parameters.get(name)
        if name not in node or (node[name] is None and (parameter is None or parameter.default is None)):
            continue
        child = node[name]
        if not isinstance(child, dict) or child.get("_target_") is None:
            raise ConfigError(f"{key}.{name}={'null' if child is None else child} has no _target_; use {inner}=...")
        _check_settings(child, f"{key}.{name}", inner, allowed)


def check_settings(cfg: DictConfig, group: str) -> None:
    """Have a component check its settings before it does anything, if it is made of a class that does so."""
    if (settings := getattr(target_of(cfg, group), "settings", None)) is not None:
        node = _component(cfg, group)
        with naming(group):
            settings(**{name: value for name, value in node.items() if name not in MARKS})


def target_of(cfg: DictConfig, group: str) -> Callable[..., Any]:
    """The class or function that a group's `_target_` names."""
    node = _component(cfg, group)
    return locate(f"{group}._target_", node["_target_"], group, _allowed(cfg))


def build(cfg: DictConfig, group: str) -> Any:
    """The component of a group. What goes wrong raises ConfigError, with the component's own message."""
    node, allowed = _component(cfg, group), _allowed(cfg)
    with naming(group):
        return _make(node, group, group, allowed)


def build_all(cfg: DictConfig, group: str) -> dict[str, Any]:
    """The components of a group that may have several, by the names of their options."""
    chosen, allowed = OmegaConf.select(cfg, group), _allowed(cfg)
    if not isinstance(chosen, DictConfig | None):
        raise ConfigError(f"{group}={chosen} must be a list of options, such as {group}=[clip_score]")
    built = {}
    for name, node in (resolve(chosen) if chosen is not None else {}).items():
        key = f"{group}.{name}"
        if not isinstance(node, dict) or node.get("_target_") is None:
            raise ConfigError(f"{key} has no _target_; choose the option, too: {group}=[{name}]")
        _check_names(node, key, group, allowed)
        _check_settings(node, key, group, allowed)
        with naming(key):
            built[name] = _make(node, key, group, allowed)
    return built


@contextmanager
def naming(group: str) -> Generator[None, None, None]:
    """Turn what a component raises into a ConfigError that names the group: a library does not know it.

    Only a full GPU stays what it is, as in the rest of a run.
    """
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, OSError, NotImplementedError) as error:
        raise ConfigError(f"{group}: {error}") from error
    except Exception as error:
        if lacking(error) == "gpu":
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}, line {last.lineno}"
        reason = " ".join(str(error).split()) or last.line  # a bare `assert lr > 0` says what it wants
        raise ConfigError(f"{group}: {type(error).__name__}: {reason} ({place})") from error


def _component(cfg: DictConfig, group: str) -> dict[str, Any]:
    """The settings of a group, resolved, and with names of `_target_`s that may be called."""
    chosen = OmegaConf.select(cfg, group)
    node = resolve(chosen) if isinstance(chosen, DictConfig) else None
    if not isinstance(node, dict) or node.get("_target_") is None:
        raise ConfigError(f"{group} has no _target_; choose an option of the group ({group}=...)")
    _check_names(node, group, group, _allowed(cfg))
    return node


def _allowed(cfg: DictConfig) -> list[str]:
    """The modules of the user's own that the configuration may call."""
    return [str(module).rstrip(".") for module in cfg.get("allowed_targets") or ()]


def _check_names(node: Any, key: str, group: str | None, allowed: Sequence[str]) -> None:
    """Refuse what may not be called in a component of `group` (None: in other settings), and in what it holds."""
    if isinstance(node, list):
        for i, child in enumerate(node):
            _check_names(child, f"{key}.{i}", None, allowed)
    if not isinstance(node, dict):
        return
    for name, child in node.items():
        inner = f"{key}.{name}"
        if name in REFUSED_MARKS or (name == "_partial_" and not rule_of(group).partial):
            raise ConfigError(f"{inner} is not used by t2i; leave it out")
        if name == "_partial_" and child is not True:
            raise ConfigError(f"{inner}={child} must be true: the last arguments come later")
        if name == "_target_":
            check_name(inner, child, group, allowed)
        else:
            _check_names(child, inner, rule_of(group).nested.get(name), allowed)


def _make(node: Any, key: str, group: str | None, allowed: Sequence[str]) -> Any:
    """The object for a node, with plain lists and dictionaries, as checkpoints hold them."""
    if isinstance(node, list):
        return [_make(child, f"{key}.{i}", None, allowed) for i, child in enumerate(node)]
    if not isinstance(node, dict):
        return node
    target = locate(f"{key}._target_", node["_target_"], group, allowed) if "_target_" in node else dict
    nested = rule_of(group).nested
    settings = {
        name: _make(child, f"{key}.{name}", nested.get(name), allowed)
        for name, child in node.items()
        if name not in MARKS
    }
    if target is dict:
        return settings
    return partial(target, **settings) if node.get("_partial_") else target(**settings)
