"""The one place where a configuration becomes objects: each group's `_target_`, called with the group's settings."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from t2i.config import ConfigError
from t2i.config.moved_targets import MOVED

# What a `_target_` may call without permission on the command line: a configuration is often somebody else's.
TRUSTED = re.compile(
    r"t2i\.|torch\.optim\.|diffusers\.optimization\.|diffusers\.(schedulers\.\w+\.)?\w+Scheduler$|"
    r"transformers\.(optimization\.)?Adafactor$|bitsandbytes\.optim\.|torchao\.optim\.|schedulefree\.|prodigyopt\.|"
    r"lion_pytorch\."
)

EXTRAS = {  # package -> the extra of t2i that installs it
    "bitsandbytes": "adamw8bit",
    "prodigyopt": "optimizers",
    "schedulefree": "optimizers",
    "lion_pytorch": "optimizers",
}


def check_targets(cfg: DictConfig) -> None:
    """Refuse every `_target_` outside of t2i and the libraries in TRUSTED, before it is imported."""
    allowed = tuple(f"{prefix.rstrip('.')}." for prefix in cfg.get("allowed_targets") or ())
    for key, target in _targets(OmegaConf.to_container(cfg)):
        if target in MOVED:
            raise ConfigError(f"{key}={target} has moved to {MOVED[target]}; use the new name")
        if not TRUSTED.match(target) and not target.startswith(allowed):
            module = target.rpartition(".")[0]
            raise ConfigError(
                f"{key}={target} calls code outside of t2i; if you trust it, allow it on the command line: "
                f"'allowed_targets=[{module}]'"
            )


def _targets(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every `_target_` in nested dictionaries and lists: its key, and what it names."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        key = f"{prefix}.{name}".lstrip(".")
        if name == "_target_":
            yield key, str(child)
        yield from _targets(child, key)


def check_signature(cfg: DictConfig, group: str) -> None:
    """Refuse a component whose `_target_` does not take its settings. Nothing is called."""
    node = cfg[group]
    target = node.get("_target_")
    if target is None:
        raise ConfigError(f"{group} has no _target_; choose an option of the group ({group}=...)")
    try:
        signature = inspect.signature(get_object(target))
    except Exception as error:  # importing somebody's module can raise anything
        extra = EXTRAS.get(target.partition(".")[0])
        remedy = f"; pip install 't2i[{extra}]'" if extra else ""
        raise ConfigError(f"{group}._target_={target} can't be imported: {error}{remedy}") from error
    if missing := OmegaConf.missing_keys(node):
        raise ConfigError(f"{', '.join(sorted(missing))} must be given")
    try:
        signature.bind_partial(**{key: None for key in node if not str(key).startswith("_")})
    except TypeError as error:
        known = ", ".join(name for name in signature.parameters if name not in ("self", "args", "kwargs"))
        raise ConfigError(f"{group}: {target} takes no such setting ({error}); it takes {known}") from error


def build(cfg: DictConfig, group: str) -> Any:
    """The component of a group. Settings that it refuses raise ConfigError, with the component's own message."""
    check_targets(cfg)
    try:
        return instantiate(cfg[group], _convert_="all")  # plain lists: checkpoints hold them
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ConfigError):
            raise ConfigError(str(cause)) from error
        if isinstance(cause, (ValueError, OSError, NotImplementedError)):  # of a library, which does not name the group
            raise ConfigError(f"{group}: {cause}") from error
        raise
