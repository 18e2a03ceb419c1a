"""The one place where the configuration becomes objects: each group's `_target_`, called with the group's settings."""

import inspect
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from t2i.config import ConfigError


def check_signature(cfg: DictConfig, group: str) -> None:
    """Refuse a component whose settings its `_target_` does not take; nothing is called."""
    node = cfg[group]
    target = node.get("_target_")
    if target is None:
        raise ConfigError(f"{group} has no _target_; choose an option of the group ({group}=...)")
    try:
        signature = inspect.signature(get_object(target))
    except Exception as error:
        raise ConfigError(f"{group}._target_={target} can't be imported: {error}") from error
    if missing := OmegaConf.missing_keys(node):
        raise ConfigError(f"{', '.join(sorted(missing))} must be given")
    try:
        signature.bind_partial(**{key: None for key in node if not str(key).startswith("_")})
    except TypeError as error:
        known = ", ".join(name for name in signature.parameters if name not in ("self", "args", "kwargs"))
        raise ConfigError(f"{group}: {target} takes no such setting ({error}); it takes {known}") from error


def build(cfg: DictConfig, group: str) -> Any:
    """The component of a group; what it refuses in its settings is the user's mistake, in its own words."""
    try:
        return instantiate(cfg[group])
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ConfigError):
            raise ConfigError(str(cause)) from error
        if isinstance(cause, (ValueError, OSError, NotImplementedError)):  # a library's words do not name the setting
            raise ConfigError(f"{group}: {cause}") from error
        raise


def rehearse(cfg: DictConfig) -> None:
    """Build optimizer and learning-rate schedule for one dummy weight: what they refuse, they refuse now."""
    try:
        optimizer = build(cfg, "optimizer")([torch.nn.Parameter(torch.zeros(1))])
        build(cfg, "lr_scheduler")(optimizer)
    except (ValueError, TypeError, RuntimeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"optimizer and lr_scheduler can't be built: {error}") from error
