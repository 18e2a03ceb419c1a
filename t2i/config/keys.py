"""Configurations as flat dictionaries, under keys such as loss.snr_gamma."""

import re
from collections.abc import Iterable
from typing import Any

KEY = re.compile(r"[+~]*([\w./-]+)(@[\w./:-]*)?(=|$)")  # of an override; group 2: the package


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a configuration under their full keys."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, value in tree.items() for k, v in flat(value, f"{prefix}.{key}".lstrip(".")).items()}


def belongs(key: str, groups: Iterable[str]) -> bool:
    """Whether a full key is one of `groups` or lies below one."""
    return any(key == group or key.startswith(f"{group}.") for group in groups)


def key_of(override: str) -> str:
    """The key of an override, without the package of a group; "" of what is none, such as an option."""
    found = KEY.match(override)
    return found[1] if found and not override.startswith("-") else ""


def set_by(override: str) -> list[str]:
    """Below which dotted keys an override may set something: its own, and the package that it puts a group into."""
    found = KEY.match(override)
    packages = re.split("[@:]", found[2] or "")[1:] if found else []
    return [key_of(override).replace("/", "."), *(package.removeprefix("_global_.") for package in packages)]
