"""Configurations: composed, checked, and made into objects. This file is light: almost every module imports it."""

import importlib.util
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
CONF = next(path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if path.is_dir())  # in a wheel, in a checkout


class ConfigError(ValueError):
    """A setting that can't be used; the message names it and the remedy."""


def check_positive(key: str, value: float, remedy: str) -> None:
    if not value > 0:
        raise ConfigError(f"{key}={value} must be positive; {remedy}")


def check_installed(package: str, setting: str, install: str) -> None:
    """Refuse `setting` where the Python package that it needs is missing."""
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"{setting} needs the package {package}; install it with: pip install {install}")
