"""The files that a configuration is composed from: each is checked before Hydra reads it.

Hydra resolves interpolations in defaults lists, and follows names and links out of a folder. A file outside of conf/
may be a stranger's, so that what is composed has to depend on its text alone, and the text has to be one that is
parsed in no time.
"""

from pathlib import Path
from typing import Any

import yaml
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from omegaconf import Container, OmegaConf
from yaml.nodes import MappingNode, Node, ScalarNode

from t2i.config import CONF, ConfigError

LARGEST = 1_000_000  # bytes
MOST_VALUES = 10_000  # with each alias (*name) counted as what it stands for
DEEPEST = 100  # levels of nested values


def guard_files() -> None:
    """From now on in this process, check every file that Hydra is about to read. It has no public hook for this."""
    Plugins.instance()  # imports Hydra's own plugins anew, so that only the registered class counts
    source: Any = SourcesRegistry.instance().resolve("file")
    load = source.load_config
    if getattr(load, "__module__", None) == __name__:
        return

    def load_checked(self: Any, config_path: str) -> ConfigResult:
        name = config_path if config_path.endswith((".yaml", ".yml")) else f"{config_path}.yaml"
        file = Path(self.path) / name
        if file.exists():  # else Hydra says where it searched
            check_file(file, Path(self.path))
        loaded: ConfigResult = load(self, config_path)
        if Path(self.path).resolve() != CONF.resolve():
            _check_defaults(loaded.config, file)
        return loaded

    source.load_config = load_checked


def check_file(file: Path, folder: Path) -> None:
    """Refuse a file that lies outside of `folder`, and one outside of conf/ that Hydra should not act on."""
    real, root = file.resolve(), folder.resolve()
    if not real.is_relative_to(root):
        raise ConfigError(f"{file} leads out of {folder} ({real}); copy the file into the folder")
    if root == CONF.resolve():
        return
    if not real.is_file():
        raise ConfigError(f"{file} is not a regular file; copy its content into one")
    if (size := real.stat().st_size) > LARGEST:
        raise ConfigError(f"{file} has {size} bytes; a configuration has at most {LARGEST}")
    try:
        _check_text(real.read_text(encoding="utf-8"))
    except RecursionError as error:
        reason = f"it has values nested deeper than {DEEPEST} levels, or one that holds itself"
        raise ConfigError(f"{file} can't be read: {reason}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{file} can't be read: {' '.join(str(error).split())}") from error


def _check_text(text: str) -> None:
    content = yaml.compose(text, Loader=yaml.SafeLoader)
    if content is not None and _count(content, {}) > MOST_VALUES:
        raise ValueError(f"it holds more than {MOST_VALUES} values, with its aliases written out")


def _check_defaults(config: Container, file: Path) -> None:
    """Refuse a defaults list that depends on more than its text. It is the one that Hydra acts on, merge keys and all.

    The check of Hydra's settings composes once, and Hydra again: an option named by the clock would be another one.
    """
    content = OmegaConf.to_container(config, resolve=False)
    if isinstance(content, dict) and "${" in str(content.get("defaults")):
        raise ConfigError(f"{file}: its defaults list holds ${{, which only conf/ can use; name the options")


def _count(node: Node, known: dict[int, int | None], depth: int = 0) -> int:
    """The number of values in a node. known: that of nodes met before, by identity; None while they are counted."""
    if isinstance(node, ScalarNode):
        return 1
    if id(node) not in known:
        if depth > DEEPEST:
            raise RecursionError
        known[id(node)] = None
        known[id(node)] = 1 + sum(_count(child, known, depth + 1) for child in _children(node))
    if (count := known[id(node)]) is None:  # an alias within what it stands for
        raise RecursionError
    return count


def _children(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        return [child for pair in node.value for child in pair]
    return [] if isinstance(node, ScalarNode) else list(node.value)
