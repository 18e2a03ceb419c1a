"""The arguments of a script, read as its own parser reads them: abbreviations, --flag=value and --flag value."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from t2i.cli.arguments import Parser
from t2i.translate.scripts import ON, TEXTS, Script


@dataclass(frozen=True)
class Arguments:
    """The value of every flag; that of a flag which the script does not have is None."""

    script: Script
    values: dict[str, Any]  # those that are given
    unknown: list[str]  # words that the script does not know
    launcher: list[str]
    images: int | None = None  # in the data set, if the user says so

    def __getitem__(self, flag: str) -> Any:
        return self.values.get(flag, default_of(self.script, flag))

    def given(self, flag: str) -> bool:
        return flag in self.values

    def launched_with(self, option: str) -> str | None:
        """The value of an option of accelerate launch or torchrun, written with = or with a blank."""
        for place, word in enumerate(self.launcher):
            name, equals, value = word.partition("=")
            if name.lstrip("-").replace("-", "_") == option and name.startswith("--"):
                return value if equals else next(iter(self.launcher[place + 1 :]), None)
        return None

    @property
    def processes(self) -> int:
        """How many processes the launcher starts, as far as it says so."""
        number = self.launched_with("num_processes") or self.launched_with("nproc_per_node") or "1"
        return int(number) if number.isdecimal() and int(number) else 1


def default_of(script: Script, flag: str) -> Any:
    value = script.flags.get(flag)
    if value is ON:
        return False
    return None if value is TEXTS or isinstance(value, type) else value


def parse(script: Script, words: Sequence[str], launcher: Sequence[str], images: int | None = None) -> Arguments:
    """Raises ConfigError for a value of another type than the flag's."""
    parser = Parser(f"translate: {script.name}", None)
    parser.prog = script.name
    for flag, default in script.flags.items():
        if default is ON:
            parser.add_argument(f"--{flag}", action="store_true", default=argparse.SUPPRESS)
        elif default is TEXTS:
            parser.add_argument(f"--{flag}", nargs="+", default=argparse.SUPPRESS)
        else:
            kind = default if isinstance(default, type) else type(default)
            parser.add_argument(f"--{flag}", type=kind, default=argparse.SUPPRESS)
    values, unknown = parser.parse_known_args(list(words))
    return Arguments(script, vars(values), unknown, list(launcher), images)
