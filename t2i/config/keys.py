"""Configurations as flat dictionaries, under keys such as loss.snr_gamma."""

from collections.abc import Iterable
from typing import Any


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a configuration under their full keys."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, value in tree.items() for k, v in flat(value, f"{prefix}.{key}".lstrip(".")).items()}


def belongs(key: str, groups: Iterable[str]) -> bool:
    """Whether a full key is one of `groups` or lies below one."""
    return any(key == group or key.startswith(f"{group}.") for group in groups)
