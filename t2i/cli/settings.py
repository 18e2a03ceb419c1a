"""Search the settings and options of conf/: `t2i settings [PATTERN]`.

It lists every setting with its default, the file in conf/ that it comes from, and what it does. PATTERN is a part of a
key, such as snr_gamma, or a regular expression. If no key matches, the explanations are searched.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path

import yaml

from t2i.cli.arguments import Parser
from t2i.cli.failing import run
from t2i.config import CONF, ConfigError

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
NOT_SETTINGS = ("_target_", "_partial_", "defaults", "hydra")


@dataclass(frozen=True)
class Setting:
    """A key of conf/, a group, or an option of a group."""

    key: str  # as on the command line: loss.snr_gamma, loss, loss=minsnr
    default: str  # as it is written in the file; empty for an option
    comment: str  # what it does; what an option is
    file: str  # in conf/
    options: dict[str, str] = field(default_factory=dict)  # of a group: name -> what it is


def settings() -> list[Setting]:
    """Every setting, group and option: config.yaml first, then the groups in its order."""
    entries = read(CONF / "config.yaml")
    for group in groups():
        entries.append(group)
        for option, comment in group.options.items():
            file = CONF / group.key / f"{option}.yaml"
            entries.append(Setting(f"{group.key}={option}", "", comment, _name(file)))
            entries += read(file)
        for file in sorted((CONF / group.key / "shared").glob("*.yaml")):  # parts of several options
            entries += read(file)
    return entries


def groups() -> list[Setting]:
    """The groups, as the defaults list of config.yaml has them."""
    file = CONF / "config.yaml"
    text, root = _parse(file)
    entries = []
    for item in next(value for key, value in root.value if key.value == "defaults").value:
        if isinstance(item, yaml.MappingNode):
            ((key, value),) = item.value
            group = key.value.removeprefix("override ")
            options = {path.stem: title(path) for path in sorted((CONF / group).glob("*.yaml"))}
            entries.append(Setting(group, _source(text, value), _comment(text, key, value), _name(file), options))
    return entries


def read(file: Path) -> list[Setting]:
    """The settings of one file. In a table inside a group, a setting without a comment has that of the table."""
    text, root = _parse(file)
    package = re.search(r"^# @package (\S+)", text, re.MULTILINE)
    folder = file.parent.parent if file.parent.name == "shared" else file.parent
    prefix = package[1].replace("_global_", "") if package else folder.relative_to(CONF).as_posix().strip(".")

    def walk(node: yaml.MappingNode, prefix: str, inherited: str) -> Iterator[Setting]:
        for key, value in node.value:
            if key.value in NOT_SETTINGS:
                continue
            name = f"{prefix}.{key.value}".lstrip(".")
            comment = _comment(text, key, value)
            if isinstance(value, yaml.MappingNode) and value.value and not value.flow_style:
                yield from walk(value, name, comment if "." in name else "")
            else:
                yield Setting(name, _source(text, value), comment or inherited, _name(file))

    return list(walk(root, prefix.replace("/", "."), ""))


def title(file: Path) -> str:
    """What a file is: the first paragraph of the comment at its head."""
    head = [line.strip("# ") for line in _head(file.read_text(encoding="utf-8").splitlines()) if "@package" not in line]
    return " ".join(takewhile(bool, head))


def search(entries: Sequence[Setting], pattern: str) -> list[Setting]:
    """The entries whose keys match a regular expression; if there are none, those whose comments do."""
    try:
        matches = re.compile(pattern, re.IGNORECASE).search
    except re.error as error:
        raise ConfigError(f"{pattern} is not a regular expression ({error})") from error
    hits = [entry for entry in entries if matches(entry.key)] or [entry for entry in entries if matches(entry.comment)]
    if not hits:
        nearest = get_close_matches(pattern, {entry.key for entry in entries}, n=1)
        raise ConfigError(f"no setting matches {pattern}" + (f"; did you mean {nearest[0]}?" if nearest else ""))
    return hits


def show(entries: Sequence[Setting]) -> None:
    """Print the entries for a reader; those that differ only in the file are printed once, with all their files."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    files: dict[tuple[str, str, str], list[str]] = {}
    for entry in entries:
        comment = f"{entry.comment}\nOptions: {', '.join(entry.options)}" if entry.options else entry.comment
        files.setdefault((entry.key, entry.default, comment), []).append(entry.file)
    for (key, default, comment), names in files.items():
        value = f"={default}" if default else ""
        console.print(Text.assemble((key, "bold"), value, "  ", (", ".join(names), "dim")))
        if comment:
            console.print(Padding(Text(comment), (0, 0, 0, 4)))


def markdown(entries: Sequence[Setting]) -> str:
    """A page of tables: the settings of each file under a heading, and the options of each group."""
    lines, file = [], ""
    for entry in entries:
        if entry.options:
            lines += ["", f"## {entry.key}", "", entry.comment, "", "| option | |", "|---|---|"]
            for option, comment in entry.options.items():
                default = " (default)" if option == entry.default else ""
                lines.append(f"| `{entry.key}={option}`{default} | {_cell(comment)} |")
        elif "=" not in entry.key:
            if entry.file != file:
                level = "##" if entry.file == "config.yaml" else "###"
                lines += ["", f"{level} {entry.file}", "", "| setting | default | |", "|---|---|---|"]
            lines.append(f"| `{entry.key}` | `{_cell(entry.default)}` | {_cell(entry.comment)} |")
            file = entry.file
    return "\n".join(lines).strip()


def parser() -> Parser:
    parser = Parser("settings", __doc__)
    parser.add_argument("pattern", nargs="?", default="", metavar="PATTERN", help="default: list all")
    parser.add_argument("--markdown", action="store_true", help="print tables in Markdown")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    entries = search(settings(), options.pattern)
    if options.markdown:
        print(markdown(entries))
    elif sys.stdout.isatty():
        show(entries)
    else:
        for entry in entries:
            print(entry.key, entry.default, entry.file, entry.comment, sep="\t")


def _parse(file: Path) -> tuple[str, yaml.MappingNode]:
    text = file.read_text(encoding="utf-8")
    root = yaml.compose(text, Loader=LOADER)
    return text, root


def _source(text: str, value: yaml.Node) -> str:
    """A value as it is written, in one line."""
    if isinstance(value, yaml.SequenceNode) and not value.flow_style:
        return f"[{', '.join(_source(text, item) for item in value.value)}]"
    return " ".join(text[value.start_mark.index : value.end_mark.index].split())


def _comment(text: str, key: yaml.Node, value: yaml.Node) -> str:
    """The comment after a value (or after the key of a table), and the lines of comment above it."""
    lines = text.splitlines()
    is_block = isinstance(value, yaml.CollectionNode) and not value.flow_style
    end = key.end_mark if is_block else value.end_mark
    after = re.search(r"\s#\s*(.*)", lines[end.line][end.column :])
    first = key.start_mark.line
    while first > len(_head(lines)) and lines[first - 1].strip().startswith("#"):
        first -= 1
    above = [line.strip().strip("# ") for line in lines[first : key.start_mark.line]]
    return " ".join([*above, *([after[1]] if after else [])])


def _head(lines: Sequence[str]) -> list[str]:
    """The comment at the head of a file."""
    return list(takewhile(lambda line: line.startswith("#"), lines))


def _name(file: Path) -> str:
    return file.relative_to(CONF).as_posix()


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    run(main)
