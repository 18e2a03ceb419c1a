"""Say what is in a data set, before training: `t2i data PATH [OVERRIDES]`.

PATH is a folder of images, of shards or of a saved data set, or the id of a data set of the Hub. The overrides are
those of `t2i train`: dataset.caption="photo of sks dog", model=sd15, resolution=512. Without PATH they name the data
set themselves, as in `t2i data dataset=openmoji`.

It reads the data set as training does, and says what is trained on, held out and left out, and why; sizes; captions
and their lengths in tokens; exact and near duplicates, also between held-out and training images. It prints a table and
writes a page with thumbnails. Nothing is encoded, and no network is loaded.
"""

import json
import logging
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from t2i.cli.arguments import overrides_of, overrides_parser
from t2i.cli.failing import run
from t2i.config import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from t2i.inspection.survey import Survey

SHOWN_REASONS, SHOWN_NAMES = 12, 4  # in the terminal; the page has all
SHORT = {"resolution": "dataset.resolution"}  # names for which `t2i train` says what is meant


def main(arguments: list[str] | None = None) -> None:
    parser = overrides_parser("data", __doc__, "dataset.caption='photo of sks dog'; without =, the PATH")
    parser.add_argument("--out", type=Path, help="the page (default: data.html in the current folder)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON; a page only with --out")
    options = parser.parse_intermixed_args(arguments)
    out = options.out or (None if options.json else Path("data.html"))
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise ConfigError(f"--out={out} is not a file that can be written; write for example --out data.html")
    options.overrides = typed = overrides_in(options.overrides)
    from t2i.inspection.survey import survey

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    found = survey(configured(overrides_of(options)), shlex.join(["t2i", "train", *typed]), _progress)
    if options.json:
        from t2i.inspection.summary import as_json

        print(json.dumps(as_json(found), indent=2, ensure_ascii=False))
    else:
        show(found)
    if out is not None:
        from t2i.inspection.survey_page import write_page

        write_page(found, out)
        print(out, file=sys.stderr if options.json else sys.stdout)


def overrides_in(arguments: list[str]) -> list[str]:
    """The overrides of a command line that may hold a path, as `t2i train` takes them."""
    paths = [text for text in arguments if "=" not in text or Path(text).exists()]
    typed = [text for text in arguments if text not in paths]
    typed = ["=".join((SHORT.get(key, key), value)) for key, _, value in (text.partition("=") for text in typed)]
    if len(paths) > 1:
        raise ConfigError(f"{paths[1]}: one data set at a time; a setting is typed as KEY=VALUE")
    if paths:
        from t2i.inspection.formats import option_for

        chosen = any(text.startswith("dataset=") for text in typed)
        typed = ([] if chosen else option_for(paths[0])) + [f"dataset.path={paths[0]}"] + typed
    if not typed:
        raise ConfigError("give the folder of a data set, or its settings; see t2i data --help")
    return typed


def configured(overrides: list[str]) -> "DictConfig":
    """The configuration, checked as far as the data set goes."""
    from t2i.config.checks import check_types
    from t2i.config.compose import compose, compose_defaults
    from t2i.config.instantiate import check_signature, check_targets, resolve_once

    cfg = resolve_once(_without_hydra(compose(overrides)))
    check_types(cfg, compose_defaults(overrides))
    check_targets(cfg)
    for group in ("dataset", "model"):
        check_signature(cfg, group)
    return cfg


def _without_hydra(cfg: "DictConfig") -> "DictConfig":
    from omegaconf import OmegaConf

    return OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])


def _progress(things: Iterable, total: int, what: str) -> Iterable:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(things, what, total, console=console, transient=True, disable=not console.is_terminal)


def show(survey: "Survey") -> None:
    """Print what was found."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from t2i.inspection.summary import first_names, lines, reasons
    from t2i.runs.text import printable

    console = Console(markup=False, highlight=False)
    console.print(
        printable(f"{survey.path}, as `{survey.command}` reads it ({survey.resolution} pixels)"), style="bold"
    )
    if survey.refusal:
        console.print(printable(f"! Training would not begin: {survey.refusal}"), style="red")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for line in lines(survey):
        table.add_row(Text(line.label), Text(printable(line.text), "yellow" if line.warns else ""))
    console.print(table)
    found = reasons(survey)
    for reason, entries in list(found.items())[:SHOWN_REASONS]:
        console.print(printable(f"• left out, {len(entries):,}: {first_names(entries, SHOWN_NAMES)}: {reason}"))
    if len(found) > SHOWN_REASONS:
        console.print(f"• and {len(found) - SHOWN_REASONS} more reasons, which the page has")
    for note in survey.notes:
        console.print(printable(f"· {note}"))


if __name__ == "__main__":
    run(main)
