"""A training command as people have it: pasted with its exports, in a shell script, or in a cell of a notebook."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import PurePath

from t2i.config import ConfigError
from t2i.translate.scripts import SCRIPTS

SCRIPT = re.compile(r"\btrain_\w+\.py\b")
LONGEST = 100_000  # characters: a few lines that double a variable stand for any number
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
ASSIGNMENTS = re.compile(r"\s*(?:(?:export|set|%env)\s+)?(?=[A-Za-z_]\w*=)")
EXPANDED = re.compile(r"'[^']*'|\"(?:\\.|[^\"\\])*\"|\\.|\$(?:\{(\w+)\}|(\w+))", re.DOTALL)
VARIABLE = re.compile(r"\\.|\$(?:\{(\w+)\}|(\w+))", re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A script and its arguments. launcher: what stands before it, such as accelerate launch --multi_gpu."""

    script: str
    arguments: list[str]
    launcher: list[str]


def read_text(text: str, environment: Mapping[str, str]) -> Command:
    """The command in a text of shell lines, with the variables that the lines before it set, or that `environment` has.

    Raises ConfigError if there is no such command, if there are several, or if a variable is not known.
    """
    variables, found = dict(environment), []
    for line in _lines(text):
        tokens = _split(line)
        if _script_at(tokens) is not None:
            found.append(_command(_split(_expanded(line, variables))))
        elif assigned := re.match(ASSIGNMENTS, line):
            words = _split(_expanded(line[assigned.end() :], variables))
            variables |= dict(word.split("=", 1) for word in words if ASSIGNMENT.fullmatch(word))
    if len(found) > 1:
        raise ConfigError(f"there are {len(found)} commands of training scripts; translate one at a time")
    if not found:
        raise ConfigError(
            f"there is no command of a training script of Diffusers; known are {', '.join(SCRIPTS)}, as in: "
            't2i translate "accelerate launch train_text_to_image.py --pretrained_model_name_or_path=..."'
        )
    return found[0]


def read_words(words: Sequence[str]) -> Command:
    """The command of words that a shell has split already."""
    if _script_at(words) is None:
        return read_text(shlex.join(words), {})
    return _command(list(words))


def _lines(text: str) -> list[str]:
    """Lines without a prompt in front, and continued ones joined, even with blanks after the backslash."""
    joined = re.sub(r"\\[ \t]*\r?\n", " ", text)
    joined = re.sub(r"\\\s*\Z", "", joined)
    return [re.sub(r"^\s*(?:[$>!]\s*|%%?(?:bash|sh)\b)", "", line) for line in _whole(joined.splitlines())]


def _whole(lines: Sequence[str]) -> list[str]:
    """Lines, where one whose quotes are open takes the next along."""
    whole: list[str] = []
    for line in lines:
        if whole and _is_open(whole[-1]):
            whole[-1] += f"\n{line}"
        else:
            whole.append(line)
    return whole


def _is_open(line: str) -> bool:
    """Whether quotes are left open in a line that matters; in prose they are apostrophes."""
    if not (SCRIPT.search(line) or ASSIGNMENTS.match(line)):
        return False
    try:
        shlex.split(line, comments=True)
    except ValueError:
        return True
    return False


def _split(line: str) -> list[str]:
    """The words of a line; none of a line without a script that is not the shell's."""
    try:
        return shlex.split(line, comments=True)
    except ValueError as error:
        if SCRIPT.search(line):
            raise ConfigError(f"the command can't be read ({error}): {_shortened(line)}") from error
        return []


def _script_at(tokens: Sequence[str]) -> int | None:
    """Where a training script stands among the words."""
    names = [PurePath(token).name for token in tokens]
    return next((place for place, name in enumerate(names) if re.fullmatch(r"train_\w+\.py", name)), None)


def _command(tokens: list[str]) -> Command:
    place = _script_at(tokens)
    assert place is not None
    script = PurePath(tokens[place]).name
    if script not in SCRIPTS:
        near = get_close_matches(script, SCRIPTS, n=1, cutoff=0.75)
        hint = f"the nearest is {near[0]}; " if near else ""
        raise ConfigError(f"{script} is not a script that is translated; {hint}known are {', '.join(SCRIPTS)}")
    return Command(script, tokens[place + 1 :], tokens[:place])


def _expanded(line: str, variables: Mapping[str, str]) -> str:
    """The line with its variables filled in, quoted so that each stays within its word."""

    def fill(found: re.Match) -> str:
        part = found[0]
        if part[0] == '"':
            return VARIABLE.sub(lambda inner: _value(inner, variables, r"\1"), part)
        return _value(found, variables, "") if part[0] == "$" else part

    expanded = EXPANDED.sub(fill, line)
    if len(expanded) > max(LONGEST, len(line)):
        raise ConfigError(f"a line has more than {LONGEST} characters when its variables are filled in; write it out")
    return expanded


def _value(found: re.Match, variables: Mapping[str, str], in_quotes: str) -> str:
    if found[0][0] != "$":
        return found[0]
    name = found[1] or found[2]
    if name not in variables:
        raise ConfigError(f"the variable {name} is not set; put a line {name}=... above the command")
    return re.sub(r'(["\\$`])', r"\\\1", variables[name]) if in_quotes else shlex.quote(variables[name])


def _shortened(line: str) -> str:
    return line if len(line) <= 80 else f"{line[:77]}..."
