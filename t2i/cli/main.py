"""`t2i COMMAND ...`: finds the command and runs it. Imports nothing heavy, so that `t2i --help` answers at once."""

import sys
from pathlib import Path
from typing import NoReturn

from t2i import __version__
from t2i.cli.commands import COMMANDS
from t2i.cli.failing import run

USAGE = """\
usage: t2i COMMAND ...

Train text-to-image diffusion models, and compare the runs honestly.

{commands}

t2i COMMAND --help         explains a command.
t2i --version              prints the versions to name in a bug report.
t2i --completion SHELL     prints the completion script for bash, zsh or fish: eval "$(t2i --completion bash)"
"""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command that `arguments` name (sys.argv's by default), and exit with its code."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in COMMANDS:
        run(lambda rest: COMMANDS[name].load()(rest), rest)
    run(_answer, [name, *rest])


def alias() -> NoReturn:
    """The scripts t2i-train, t2i-sample and t2i-compare: the command is in the name of the script."""
    main([Path(sys.argv[0]).stem.removeprefix("t2i-"), *sys.argv[1:]])


def _answer(arguments: list[str]) -> None:
    """What `t2i` itself can be asked."""
    match arguments:
        case ["-h" | "--help", *_]:
            print(usage())
        case ["--version"]:
            print(versions())
        case ["--completion", *shell]:
            from t2i.cli.completion import script

            print(script(*shell[:1]))
        case [name, *_]:
            raise unknown(name)


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return USAGE.format(commands="\n".join(lines)).rstrip()


def versions() -> str:
    from importlib.metadata import PackageNotFoundError, version
    from platform import python_version

    parts = [f"Python {python_version()}"]
    for package in ("torch", "diffusers"):
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            parts.append(f"{package} is missing")
    return f"t2i {__version__} ({', '.join(parts)})"


def unknown(name: str) -> Exception:
    from difflib import get_close_matches

    from t2i.config import ConfigError

    if nearest := get_close_matches(name, COMMANDS, n=1):
        return ConfigError(f"no command '{name}'; did you mean {nearest[0]}?")
    return ConfigError(f"no command '{name}'; choose from {', '.join(COMMANDS)}")
