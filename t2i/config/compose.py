"""Hydra's command line outside of Hydra's own programs."""

import argparse
from itertools import product
from pathlib import Path

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

PACKAGE = Path(__file__).resolve().parent.parent
CONF = next(path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if path.is_dir())  # in a wheel, in a checkout


def compose(overrides: list[str], **options) -> DictConfig:
    """The configuration that `python -m t2i.train OVERRIDES` sees."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("config", overrides=overrides, **options)


def asked(program: str, description: str, example: str, arguments: list[str] | None) -> list[list]:
    """The jobs that a command line names, as `expand` returns them: one, or with -m those of a sweep."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=description, formatter_class=layout)
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help=f"for example {example}")
    parser.add_argument("-m", "--multirun", action="store_true", help="lists of values (a,b) are the jobs of a sweep")
    options = parser.parse_intermixed_args(arguments)
    return expand(options.overrides) if options.multirun else [[(None, text) for text in options.overrides]]


def expand(arguments: list[str]) -> list[list[tuple[Override, str]]]:
    """The jobs of a sweep: each override, and its text with one of its values."""
    overrides = OverridesParser.create().parse_overrides(arguments)
    return [list(zip(overrides, texts, strict=True)) for texts in product(*map(_values, overrides))]


def _values(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [override.input_line]
    key = override.input_line.partition("=")[0]
    return [f"{key}={value}" for value in override.sweep_string_iterator()]
