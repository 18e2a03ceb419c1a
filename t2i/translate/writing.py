"""Settings as a command that can be pasted: quoted for Hydra's grammar, and then for the shell."""

import re
import shlex
from collections.abc import Mapping
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from t2i.config import ConfigError
from t2i.config.typed import as_typed, quoted

WIDTH = 84  # characters of a line of the command


def for_shell(word: str) -> str:
    """The word as a shell reads it back; in double quotes if that is easier to read."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`!\\') else shlex.quote(word)


def override(key: str, value: Any) -> str:
    """KEY=VALUE as Hydra reads it back."""
    return f"{key}={written(value)}" if not isinstance(value, str) else _text(key, value)


def written(value: Any) -> str:
    """A value in Hydra's grammar; texts in quotes."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    if isinstance(value, list):
        return f"[{','.join(map(_item, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_item(item)}' for key, item in value.items())}}}"
    return _in_quotes(value) if isinstance(value, str) else str(value)


def command(program: list[str], overrides: Mapping[str, Any]) -> str:
    """The program and its overrides in lines that end in a backslash."""
    lines = [" ".join(map(_word, program))]
    for word in (for_shell(override(key, value)) for key, value in overrides.items()):
        if len(lines) > 1 and len(lines[-1]) + len(word) + 3 <= WIDTH:
            lines[-1] += f" {word}"
        else:
            lines.append(f"  {word}")
    return " \\\n".join(lines)


def _word(word: str) -> str:
    """A word of the program; what sets a variable is quoted behind its name."""
    name, equals, value = word.partition("=")
    return f"{name}={shlex.quote(value)}" if equals and name.isidentifier() else shlex.quote(word)


def _text(key: str, value: str) -> str:
    """Without quotes, where t2i and Hydra read the same text without them."""
    bare = f"{key}={_plain(value)}"
    return bare if value and _reads_as(bare, value) else f"{key}={_in_quotes(value)}"


def _reads_as(argument: str, value: Any) -> bool:
    try:
        return all(
            _parsed(text) == value for text in (argument, *as_typed([argument]), *as_typed(["-m", argument])[1:])
        )
    except (HydraException, ValueError):
        return False


def _parsed(argument: str) -> Any:
    return OverridesParser.create().parse_override(argument).value()


def _item(value: Any) -> str:
    """An element of a list or a table: names of layers need no quotes, prompts do."""
    return _bare_or_quoted(value) if isinstance(value, str) else written(value)


def _bare_or_quoted(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z_][\w.]*", text, re.ASCII) and text.lower() not in WORDS else _in_quotes(text)


WORDS = ("null", "true", "false", "nan", "inf")  # which Hydra reads as values


def _in_quotes(text: str) -> str:
    return quoted(_plain(text), '"' if "'" in text and '"' not in text else "'")


def _plain(text: str) -> str:
    if "${" in text:
        raise ConfigError(f"{text!r} holds ${{, which a configuration takes for an interpolation; write it otherwise")
    return text
