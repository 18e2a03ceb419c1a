"""Which layers of a network are adapted: `adapter.target_modules`, and the patterns of ranks."""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

from torch import Tensor, nn

from t2i.config import ConfigError

ALL_LINEAR = "all-linear"
CLIP = {"attention": ["q_proj", "k_proj", "v_proj", "out_proj"], "ff": ["fc1", "fc2"]}  # of text encoders
PATTERN = re.compile(r"[*+?^$|()\[\]\\{}]")  # what tells a regular expression from a name

Words = Mapping[str, Sequence[str]]  # attention and ff -> ends of names


def choose_layers(network: nn.Module, wanted: Sequence[str] | str, words: Words, setting: str) -> list[str]:
    """The names of the layers that are wanted, in the order of the network.

    wanted: ends of names and regular expressions for whole names; or words, joined by +; or all-linear.

    Raises ConfigError for what fits no layer of matrices, with similar names.
    """
    layers = {name: part for name, part in network.named_modules() if _has_matrix(part)}
    if wanted == ALL_LINEAR:
        return [name for name, part in layers.items() if isinstance(part, nn.Linear)]
    chosen = set()
    for entry in expand(wanted, words, setting):
        if not (found := [name for name in layers if matches(entry, name, setting)]):
            raise ConfigError(f"{setting}: no layer is called {entry}{near(entry, layers)}")
        chosen |= set(found)
    return [name for name in layers if name in chosen]


def expand(wanted: Sequence[str] | str, words: Words, setting: str) -> list[str]:
    """The names that are wanted, with those that words stand for."""
    if not isinstance(wanted, str):
        return [str(entry) for entry in wanted]
    parts = wanted.split("+")
    if unknown := [part for part in parts if part not in words]:
        if len(parts) == 1:
            return [wanted]
        raise ConfigError(f"{setting}={wanted}: {unknown[0]} is none of {', '.join(words)}; or use {ALL_LINEAR}")
    return [name for part in parts for name in words[part]]


def matches(entry: str, name: str, setting: str) -> bool:
    """Whether an end of a name, or a regular expression for all of it, is that of a layer."""
    if not PATTERN.search(entry):
        return name == entry or name.endswith(f".{entry}")
    try:
        return re.fullmatch(entry, name) is not None
    except re.error as error:
        raise ConfigError(f"{setting}: {entry} is no regular expression ({error})") from error


def fitting(patterns: Mapping[str, float], layers: Iterable[str]) -> dict[str, float]:
    """The patterns that fit a layer, as peft reads them: an end of the name, or a regular expression of it."""
    names = list(layers)
    return {key: value for key, value in patterns.items() if any(_ends(key, name) for name in names)}


def refuse_unfitting(patterns: Mapping[str, float], layers: Sequence[str], setting: str) -> None:
    """Raise ConfigError for a pattern that fits no adapted layer."""
    for key in patterns.keys() - fitting(patterns, layers).keys():
        raise ConfigError(f"{setting}: no adapted layer is called {key}{near(key, layers)}")


def _ends(key: str, name: str) -> bool:
    return re.match(rf"(.*\.)?({key})$", name) is not None


def near(entry: str, layers: Iterable[str]) -> str:
    """What similar layers are called, as the end of a message."""
    ends = {".".join(name.split(".")[-count:]) for name in layers for count in (1, 2, 3)}
    similar = get_close_matches(entry, sorted(ends), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(similar)}?" if similar else f"; there are {', '.join(sorted(ends)[:8])}, ..."


def _has_matrix(part: nn.Module) -> bool:
    weight = getattr(part, "weight", None)
    return isinstance(part, nn.Linear) or (isinstance(weight, Tensor) and weight.ndim >= 2)
