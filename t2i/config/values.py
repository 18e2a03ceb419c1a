"""What values a configuration may hold, whoever wrote it: those that every file of a run can store, and that end."""

import math
import re
from typing import Any

from t2i.config import ConfigError

LONGEST_NUMBER = 1024  # bits of a whole number; Python refuses to print numbers of some ten thousand
LARGEST = 1_000_000  # characters and values with every interpolation written out
REFERENCE = re.compile(r"\$\{([^${}]*)(?=(\$?))")  # up to the end of a name, or to a name within it

Path = tuple[str | int, ...]


def check_values(node: Any, key: str = "") -> None:
    """Refuse values of nested dictionaries and lists that JSON does not have, such as those of YAML's tags, and NaN."""
    if isinstance(node, dict):
        if not (all(isinstance(name, str) for name in node) or all(isinstance(name, int | float) for name in node)):
            raise ConfigError(f"{key or 'the configuration'}: the names in a table must be texts")
        for name, child in node.items():
            check_values(child, f"{key}.{name}".lstrip("."))
    elif isinstance(node, list):
        for i, child in enumerate(node):
            check_values(child, f"{key}.{i}")
    elif isinstance(node, int) and node.bit_length() > LONGEST_NUMBER:
        raise ConfigError(f"{key} is a number of {node.bit_length()} bits; it may have {LONGEST_NUMBER}")
    elif isinstance(node, float) and math.isnan(node):
        raise ConfigError(f"{key} is not a number (NaN)")
    elif not isinstance(node, str | int | float | None):
        raise ConfigError(f"{key} is {type(node).__name__}, which no setting can be; write a text, a number or a list")


def check_size(tree: Any) -> None:
    """Refuse a configuration, given unresolved, whose interpolations would take forever to write out."""
    if _Size(tree).of(tree, ()) > LARGEST:
        raise ConfigError(f"the interpolations (${{...}}) stand for more than {LARGEST} characters; write values out")


class _Size:
    """Sizes of the values of a configuration with every interpolation written out; no interpolation is resolved."""

    def __init__(self, tree: Any):
        self.tree, self.known = tree, dict[Path, int | None]()  # None: it is being counted

    def of(self, node: Any, path: Path) -> int:
        if isinstance(node, str) and "${" in node:
            return len(node) + self._at(path, node)
        if isinstance(node, dict | list):
            return 1 + sum(self.of(child, (*path, name)) for name, child in _children(node))
        return len(node) if isinstance(node, str) else 1

    def _at(self, path: Path, text: str) -> int:
        """The size of what the interpolations in a text stand for."""
        size = 0
        for name, continues in REFERENCE.findall(text):
            if ":" in name:  # a resolver, whose arguments come next
                continue
            target = self._target(path, name.strip().rstrip("." if continues else ""))
            size += self._of_target(target, partly=bool(continues))
        return size

    def _of_target(self, path: Path, partly: bool) -> int:
        """The size of the value at a path; partly: or of any value below it."""
        if path in self.known:
            if (size := self.known[path]) is None and partly:
                raise ConfigError(f"{'.'.join(map(str, path))}: an interpolation in it must name the key that it means")
            return size or 0  # OmegaConf refuses a value that stands for itself
        self.known[path] = None
        node = self._node(path)
        self.known[path] = size = self.of(node, path)
        return size

    def _target(self, path: Path, name: str) -> Path:
        """The path that a name at `path` refers to: ${.name} to a neighbour, ${..name} to one of the table above."""
        dots = len(name) - len(name.lstrip("."))
        names = [part for part in re.split(r"[.\[\]]+", name[dots:]) if part]
        return (*(path[:-dots] if dots else ()), *names)

    def _node(self, path: Path, followed: int = 0) -> Any:
        """The value at a path, through tables that are interpolations themselves; None if there is none."""
        node: Any = self.tree
        for i, name in enumerate(path):
            if isinstance(node, str) and (found := REFERENCE.match(node)) and followed < LONGEST_NUMBER:
                node = self._node((*self._target(path[:i], found[1].strip()), *path[i:]), followed + 1)
                return node
            children = {str(key): child for key, child in _children(node)}
            if (node := children.get(str(name))) is None:
                return None
        return node


def _children(node: Any) -> list[tuple[Any, Any]]:
    return list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
