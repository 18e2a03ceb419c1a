"""Turn a command of Diffusers' training scripts into one of t2i: `t2i translate "accelerate launch train_...py ..."`.

The command may be given as one text, as words, as a file (a shell script) or on standard input; with the
variables that it uses set above it, and with continued lines. What is printed can be pasted into a shell: the command,
and as comments what differs, which flags have no meaning here, and which were not understood.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path

from t2i.cli.arguments import Parser, positive
from t2i.cli.failing import run
from t2i.config import ConfigError


def parser() -> Parser:
    parser = Parser("translate", __doc__)
    parser.add_argument("command", nargs="*", metavar="COMMAND", help="the command, or a file with it; default: stdin")
    parser.add_argument(
        "--images", type=positive, metavar="N", help="images in the data set, to turn epochs into steps"
    )
    parser.add_argument("--flags", action="store_true", help="print what every flag becomes, as a table in Markdown")
    return parser


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    own, words = split_arguments(arguments)
    options = parser().parse_args(own)
    from t2i.translate.shell import read_text, read_words
    from t2i.translate.tables import documentation
    from t2i.translate.translation import translate

    if options.flags:
        print(documentation())
        return
    words = words or options.command
    command = read_words(words) if len(words) > 1 else read_text(_text(words), os.environ)
    print(translate(command, options.images).text())


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The options of t2i translate, and the words of a command, whose options are its own, with or without --.

    A command in one text, or a file, is one of the former.
    """
    place = 0
    while place < len(arguments) and arguments[place].startswith("--") and arguments[place] != "--":
        place += 2 if arguments[place] == "--images" else 1
    words = arguments[place:][1:] if arguments[place : place + 1] == ["--"] else arguments[place:]
    is_command = any(word.endswith(".py") and " " not in word for word in words)
    return (arguments[:place], words) if is_command else (arguments, [])


def _text(words: list[str]) -> str:
    """The command itself, or what is in the file or on standard input."""
    if not words or words == ["-"]:
        if sys.stdin.isatty():
            print("paste the command, then press Ctrl-D", file=sys.stderr)
        return sys.stdin.read()
    (word,) = words
    with suppress(OSError, ValueError):  # a command is longer than names of files may be
        if Path(word).is_file():
            return Path(word).read_text(encoding="utf-8")
    if " " not in word.strip() and word.endswith((".sh", ".txt")):
        raise ConfigError(f"{word} is not a file; give the command in quotes, or the file that holds it")
    return word


if __name__ == "__main__":
    run(main)
