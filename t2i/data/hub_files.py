"""Where the files of a data set may lie that `datasets` reads: in its folder, or on the Hub if it is from there."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCard, hf_hub_download

from t2i.config import ConfigError

LARGEST = 50_000_000  # bytes of such a file, of which `datasets` reads all
SETTINGS = ("README.md", ".huggingface.yaml")  # the files of a data set in which its author names its data files


def refuse_formats(path: str) -> None:
    """Refuse the name of a format, such as pandas: `datasets` would read the current folder, pickles included."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    if path in _PACKAGED_DATASETS_MODULES:
        raise ConfigError(f"dataset.path={path} names a format of `datasets`; for a folder of this name, use ./{path}")


def stated(path: str, revision: str | None) -> list[str]:
    """The data files that the settings of a data set name, as patterns. path: a folder, or the id of a repository.

    Where the settings can't be fetched or parsed, there are none: `datasets`, which reads them next, explains it.
    """
    names = []
    for name in SETTINGS:
        try:
            folder = Path(path)
            file = folder / name if folder.is_dir() else Path(_fetched(path, name, revision))
            if file.is_file() and (size := file.stat().st_size) > LARGEST:
                raise ConfigError(f"dataset.path={path}: its {name} has {size} bytes; it may have {LARGEST}")
            text = file.read_text(encoding="utf-8") if file.is_file() else ""
            content = DatasetCard(text).data.to_dict() if name.endswith(".md") else yaml.safe_load(text)
            names += _texts([[config.get("data_files"), config.get("data_dir")] for config in content["configs"]])
        except ConfigError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, yaml.YAMLError):
            continue
    return names


def _fetched(path: str, name: str, revision: str | None) -> str:
    return hf_hub_download(path, name, repo_type="dataset", revision=revision)


def _texts(node: Any) -> list[str]:
    """All texts in lists and tables of them; each list and table is looked into once, as YAML's aliases repeat it."""
    texts, seen, left = [], set(), [node]
    while left:
        node = left.pop()
        if isinstance(node, str):
            texts.append(node)
        elif isinstance(node, (dict, list)) and id(node) not in seen:
            seen.add(id(node))
            left += node.values() if isinstance(node, dict) else node
    return texts


def refuse_schemes(names: Iterable[str], path: str) -> None:
    """Refuse data files that are neither paths nor on the Hub, such as http://X, local:///X and zip://X::Y.

    A data set in a folder may not name files on the Hub, either.
    """
    allowed = ("file",) if Path(path).is_dir() else ("file", "hf")
    for name in names:
        scheme = re.match(r"([\w.+-]+)://", name)
        if (scheme and scheme[1] not in allowed) or ("::" in name and not os.path.isfile(name)):
            raise ConfigError(
                f"dataset.path={path}: {name} lies outside the data set, as its README.md says; copy the file into the "
                "folder, and name it by its path there"
            )
