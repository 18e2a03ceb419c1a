"""What the files of a model may name: parts of Diffusers and Transformers, and files of the model.

A model is often a stranger's. The libraries follow a few names in its settings to code or files that lie elsewhere.
"""

import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from t2i.config import ConfigError

LONGEST_TEXT = 10_000_000  # tokens; memory is taken for so many
NO_LIMIT = int(1e30)  # of Transformers, for a tokenizer that says nothing of it
MOST_LAYERS = 10_000
LIBRARIES = ("diffusers", "transformers")
IMPLEMENTATION = re.compile(
    r"_?(attn|experts)_implementation(_internal)?"
)  # Transformers fetches OWNER/NAME as a kernel
LAYERS = re.compile(
    r"(^|_)(layers|blocks)(_|$)|depth"
)  # keys that count the parts of a network, each of which takes time
FILES = ("weight_map", "fast_tokenizer_files", "transformers_weights")  # keys under which files of the part are named


def check_index(path: str | Path, index: Mapping[str, Any]) -> None:
    """Refuse a model_index.json that names other classes than those of Diffusers and Transformers.

    path: of the model, for the message. Raises ConfigError, as the other functions do.
    """
    if not isinstance(index.get("_class_name"), str):
        raise refused(path, "model_index.json", "_class_name", index.get("_class_name"))
    for name, value in index.items():
        is_part = isinstance(value, (list, tuple)) and any(isinstance(word, str) for word in value)
        if is_part and not (len(value) == 2 and _is_library(value[0]) and isinstance(value[1], str)):
            raise refused(path, "model_index.json", name, list(value))


def check_folder(path: str | Path, folder: str | Path, index: Mapping[str, Any]) -> None:
    """Refuse what the settings of the parts in `folder` name elsewhere; `index` is the content of model_index.json."""
    for file in sorted(Path(folder).glob("*/*.json")):
        name = f"{file.parent.name}/{file.name}"
        if file.name == "adapter_config.json":
            raise refused(path, name, "base_model_name_or_path", "another model")
        if file.name != "config.json" and not file.name.endswith(("_config.json", ".index.json")):
            continue
        kind = index.get(file.parent.name)
        automatic = isinstance(kind, (list, tuple)) and str(kind[-1]).startswith("Auto")
        content = json.loads(file.read_text(encoding="utf-8"))
        for key, value in content.items() if isinstance(content, dict) else ():
            numbers = value if isinstance(value, list) else [value]
            if LAYERS.search(key) and any(isinstance(number, int) and number > MOST_LAYERS for number in numbers):
                raise ConfigError(
                    f"model.path={path} can't be loaded: its {name} says {key}: {value}, more than any model"
                )
        for key, text in leading_elsewhere(content, automatic):
            raise refused(path, name, key, text)


def leading_elsewhere(settings: Any, automatic: bool) -> Iterator[tuple[str, str]]:
    """What the settings of a part name outside of its folder, and under which key.

    automatic: whether the part is loaded by an automatic class, which looks for code in the settings.
    """
    for key, text in _texts(settings):
        names_file = key in FILES and re.search(r"[/\\]", text)
        names_repository = (IMPLEMENTATION.fullmatch(key) or key == "backbone") and "/" in text
        if names_file or names_repository or (key == "auto_map" and automatic):
            yield key, text


def check_tokenizer(part: Any) -> None:
    """Raise ValueError for a tokenizer, or the processor around one, whose settings no text can be tokenized with."""
    tokenizer = getattr(part, "tokenizer", part)
    length = getattr(tokenizer, "model_max_length", 1)
    if type(length) is not int or not (1 <= length <= LONGEST_TEXT or length == NO_LIMIT):
        raise ValueError(f"its tokenizer has model_max_length {length}, which must be from 1 to {LONGEST_TEXT}")
    if callable(tokenizer):
        try:
            tokenizer("a")
        except Exception as error:  # of the tokenizers library, which has one kind for all
            raise ValueError(f"its tokenizer can't be used ({error})") from error


def refused(path: str | Path, file: str, key: str, value: Any) -> ConfigError:
    return ConfigError(
        f"model.path={path} can't be loaded: its {file} leads to code or files that are not the model's "
        f"({key}: {value}); use another model, or a copy without this"
    )


def _is_library(name: Any) -> bool:
    """Whether it is a library of parts, or the folder of a pipeline of Diffusers, some of which bring their own."""
    if name in LIBRARIES:
        return True
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        return False
    spec = importlib.util.find_spec(f"diffusers.pipelines.{name}")
    return spec is not None and spec.submodule_search_locations is not None


def _texts(node: Any) -> Iterator[tuple[str, str]]:
    """Each text in a JSON file, with every key of this module that it lies under, or with the last one."""
    left = [("", node)]
    while left:
        key, node = left.pop()
        if isinstance(node, str):
            yield key, node
        elif isinstance(node, list):
            left += [(key, child) for child in node]
        elif isinstance(node, dict):
            held = key in FILES or key == "auto_map" or IMPLEMENTATION.fullmatch(key)
            left += [(key if held else str(name), child) for name, child in node.items()]
