"""Make the page of a run: `t2i show RUN`.

One HTML file that needs no other: state and what to type next, curves, samples over time with their captions, settings
(first those that are not the defaults), and the end of the log. With --watch, it is written anew while the run trains,
and renews itself in the browser. RUN is a folder, or the name of a run in multirun/.
"""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from t2i.cli.arguments import Parser, positive
from t2i.cli.failing import run
from t2i.config import ConfigError

if TYPE_CHECKING:
    from t2i.comparison.results import Result

PAGE = "run.html"
LIVE = ("running", "never begun")  # states in which it is worth to wait


def parser() -> Parser:
    parser = Parser("show", __doc__)
    parser.add_argument("run", metavar="RUN", help="folder of a run, or its name in multirun/")
    parser.add_argument("--out", type=Path, help=f"the page (default: {PAGE} in RUN)")
    parser.add_argument("--watch", action="store_true", help="write the page anew until the run ends")
    parser.add_argument("--every", type=positive, default=10, help="seconds between looks (default: %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    folder = find(options.run)
    out = options.out or folder / PAGE
    check_out(folder, out)
    found = read(folder)
    from t2i.inspection.run_page import write_page

    write_page(found, out, options.every if options.watch and found.state in LIVE else None)
    tell(found)
    print(out, flush=True)
    if options.watch:
        watch(folder, out, options.every, found)


def find(name: str) -> Path:
    """The folder of a run, by path or by name."""
    from t2i.runs.names import refuse_missing

    for folder in (Path(name).expanduser(), Path("multirun") / name):
        if folder.is_dir():
            return folder
    refuse_missing(name)
    refuse_missing(str(Path("multirun") / name))
    raise ConfigError(f"{name} is not a folder; give that of a run, such as multirun/NAME")


def read(folder: Path) -> "Result":
    """The run in a folder. Raises ConfigError if there are several in it, or none."""
    from t2i.comparison.results import read_results

    results = read_results([folder])
    if [result.folder for result in results] != [folder.resolve()]:
        first = folder / results[0].folder.relative_to(folder.resolve())
        raise ConfigError(
            f"{folder} holds runs ({len(results)}) and is none: `t2i compare {folder}` compares them, "
            f"`t2i runs {folder}` lists them, and this shows one, such as {first}"
        )
    return results[0]


def check_out(folder: Path, out: Path) -> None:
    """Refuse a place where the page can't be written, or that a stranger's link leads to."""
    from t2i.runs.links import refuse_links_out

    if out.is_dir() or not out.parent.is_dir():
        raise ConfigError(f"--out={out} is not a file that can be written; write for example --out run.html")
    if Path(os.path.abspath(out)).is_relative_to(os.path.abspath(folder)):
        refuse_links_out(folder, out)
    if not os.access(out.parent, os.W_OK):
        raise ConfigError(f"{out.parent} can't be written; use --out FILE")


def tell(found: "Result") -> None:
    """Print the state, and what to type next."""
    from t2i.inspection.run_page import headline_facts, steps_of
    from t2i.runs.text import printable

    facts = ", ".join(f"{label} {text}" for label, text in headline_facts(found))
    reason = f" ({found.reason})" if found.reason and found.state not in ("running", "interrupted", "paused") else ""
    print(printable(f"{found.name}: {found.state}{reason}{': ' if facts else ''}{facts}"))
    for step in steps_of(found):
        print(printable(f"{step.what}{': ' if step.command else ''}{step.command}"))


def watch(folder: Path, out: Path, every: int, found: "Result") -> None:
    """Write the page whenever the run has gone on, until it ends; Ctrl-C ends it, too."""
    from t2i.inspection.run_page import write_page

    try:
        while found.state in LIVE:
            time.sleep(every)
            before, found = state_of(found), read(folder)
            if state_of(found) != before:
                write_page(found, out, every if found.state in LIVE else None)
    except KeyboardInterrupt:
        write_page(found, out)  # which does not promise to renew itself any more
        return
    tell(found)


def state_of(found: "Result") -> tuple:
    """What changes whenever the page would."""
    from t2i.runs.files import numbered

    return found.state, found.reason, len(found.lines), tuple(numbered(found.folder / "samples", "png"))


if __name__ == "__main__":
    run(main)
