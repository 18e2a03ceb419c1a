"""Command lines as people type them: texts that Hydra's grammar would read as something else are put in quotes."""

import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from t2i.config import CONF

TEXTS = (
    *(
        "run",
        "sweep",
        "cache_dir",
        "dataset.path",
        "dataset.caption",
        "dataset.caption_template",
        "dataset.masks",
        "dataset.name",
        "dataset.split",
        "dataset.revision",
    ),
    *("dataset.data_files", "dataset.validation_files", "dataset.image_column", "dataset.caption_column"),
    "dataset.loss_weight_column",
    *("model.path", "model.config", "model.vae", "model.revision", "model.variant", "adapter.path"),
    "validation.reference",
    *("tracker.project", "tracker.entity", "tracker.name", "hub.repo", "hub.license"),
    *("evaluation.prompts", "evaluation.column", "evaluation.clip"),
)
LISTS = ("samples.prompts", "evaluation.prompts", "model.adapters", "adapter.new_tokens")
GROUPS = {folder.name for folder in CONF.iterdir() if folder.is_dir() and folder.name != "hydra"}
NO_NAME = re.compile(r"(?i)true|false|[-+]?[\d.]+(e[-+]?\d+)?|nan|inf")
SENTENCES = ("dataset.caption", "dataset.caption_template")  # a comma in them separates values in sweeps alone
LINE_BREAK = re.compile(r"""('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")|\s*\n\s*""", re.DOTALL)  # group 1: a text in quotes
OVERRIDE = re.compile(r"(\+{0,2}([\w./-]+)=)(.*)", re.DOTALL)


def as_typed(arguments: Sequence[str]) -> list[str]:
    """The arguments, with the value of a setting that is a text in quotes where it needs them.

    So run=2024_06_01 is not a number, and dataset.path=~/my [best] pics is a path, not a list or an error.
    """
    several = any(argument in ("-m", "--multirun") for argument in arguments)
    arguments = [_in_one_line(argument) for argument in arguments]
    return [_quoted(argument, several) for argument in arguments]


def quoted(text: str, mark: str = "'") -> str:
    """The text as Hydra reads it back. A backslash escapes quotes, and backslashes before them."""
    return (
        mark + re.sub(rf"(\\*)({mark}|$)", lambda found: found[1] * 2 + (f"\\{mark}" if found[2] else ""), text) + mark
    )


def _in_one_line(argument: str) -> str:
    """A list or a table that is typed over several lines, which Hydra does not read, in one."""
    override = OVERRIDE.fullmatch(argument)
    if override is None or not override[3].lstrip().startswith(("[", "{")):
        return argument
    return override[1] + LINE_BREAK.sub(lambda found: found[1] or " ", override[3]).strip()


def _quoted(argument: str, several: bool) -> str:
    override = OVERRIDE.fullmatch(argument)
    if override is None:
        return argument
    beginning, key, value = override.groups()
    value = value.strip()
    if key in GROUPS and NO_NAME.fullmatch(value):  # ema=false: no option, but no fault of Hydra's either
        return beginning + quoted(value)
    if key not in (*TEXTS, *LISTS):
        return argument
    if not value or value == "null" or value[0] in "'\"" or "${" in value:
        return argument
    if key in LISTS and value.startswith("[") and value.endswith("]"):
        elements = [element.strip() for element in value[1:-1].split(",")]
        marked = any(element[:1] in ("'", '"') for element in elements)
        texts = marked or all(isinstance(element, str) for element in _list(argument))
        return argument if texts else f"{beginning}[{','.join(map(quoted, elements))}]"
    if key not in TEXTS:
        return argument
    kind = _kind(argument)
    is_sweep = kind == "several" and (several or key not in SENTENCES)
    if kind == "text" or (is_sweep and not _exists(value)):
        return argument
    if several and "," in value and not _exists(value) and not _is_one_template(key, value):
        return beginning + ",".join(map(quoted, value.split(",")))
    return beginning + quoted(value)


def _is_one_template(key: str, value: str) -> bool:
    """Whether a template with commas is one: in a sweep of several, each has a place for the caption."""
    return key == "dataset.caption_template" and not all("{caption}" in part for part in value.split(","))


def _kind(argument: str) -> str:
    """What Hydra takes the value for: a text, several values of a sweep, or something else."""
    try:
        override = OverridesParser.create().parse_override(argument)
        value = override.value()
    except (HydraException, ValueError):
        return ""
    if override.is_sweep_override():
        return "several"
    return "text" if isinstance(value, str) else ""


def _list(argument: str) -> list:
    """The elements of a list; [None] if it can't be read."""
    try:
        value = OverridesParser.create().parse_override(argument).value()
    except (HydraException, ValueError):
        return [None]
    return value if isinstance(value, list) else [None]


def _exists(value: str) -> bool:
    try:
        return Path(value).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False
