"""Composed configurations, and what tests of several processes need."""

import socket
from collections.abc import Iterable
from typing import Any

import hydra
from omegaconf import DictConfig

import t2i.config.resolvers  # noqa: F401 - which conf/ uses
from t2i.config import CONF


def compose(*overrides: str) -> DictConfig:
    """The configuration that `python -m t2i.train OVERRIDES` sees."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("config", overrides=list(overrides))


def untimed(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl, without what the machine has to do with: what is the same in an equal run."""
    return [{key: value for key, value in line.items() if not key.startswith(("speed/", "memory/"))} for line in lines]


def free_port() -> str:
    """For processes that look for each other: tests that run side by side must not meet."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])
