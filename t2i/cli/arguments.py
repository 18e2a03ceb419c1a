"""What the parsers of the commands share."""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple, NoReturn

from t2i.config import ConfigError

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")


class Parser(argparse.ArgumentParser):
    """The parser of `t2i COMMAND`. A mistake raises ConfigError, like a mistake in a setting."""

    def __init__(self, command: str, description: str | None):
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=f"t2i {command}", description=description, formatter_class=layout)
        self.add_argument("--version", action=_Version, nargs=0, help="print the versions to name in a bug report")

    def flags(self) -> set[str]:
        """The options that there are, as they are typed."""
        return {flag for action in self._actions for flag in action.option_strings}

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


class _Version(argparse.Action):
    """Prints what `t2i --version` prints, and ends."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from t2i.cli.main import versions

        print(versions())
        parser.exit()


def as_run(text: str) -> str:
    """The text as it is, or the folder in multirun/ of a run or a sweep of that name where there is no such path."""
    named = Path("multirun") / text
    return str(named) if not Path(text).exists() and named.is_dir() else text


def run_folder(text: str) -> Path:
    """The folder that a path names, or a name as in `as_run`."""
    return Path(as_run(text))


def positive(text: str) -> int:
    """The type of an option that counts something."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least 1")
    return int(text)


def check_image_file(file: Path) -> None:
    """Refuse a name that no image can be written to. The format follows from the suffix."""
    if file.suffix.lower() not in IMAGES:
        raise ConfigError(f"--out={file} has no suffix of an image; write for example --out {file}.png")
    blocking = next((folder for folder in file.parents if folder.exists() and not folder.is_dir()), None)
    if blocking is not None or file.is_dir():
        raise ConfigError(
            f"--out={file}: {blocking or file} is {'a file' if blocking else 'a folder'}; use another name"
        )


def add_sampling_options(parser: Parser) -> None:
    """How images are generated: --steps, --guidance-scale and --weights."""
    parser.add_argument("--steps", type=positive, default=25, help="denoising steps (default: %(default)s)")
    parser.add_argument(
        "--guidance-scale",
        type=float,
        default=3.0,
        help="how closely to follow the prompt; 1 switches guidance off (default: %(default)s)",
    )
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="averaged (default) or raw weights")


class Job(NamedTuple):
    """A run of a command line, or with -m one of its runs."""

    overrides: list[str]
    name: str  # the overrides in which it differs from the other runs


def overrides_parser(command: str, description: str | None, example: str) -> Parser:
    """A parser of overrides, as `t2i train` takes them."""
    parser = Parser(command, description)
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help=f"a setting or an option, as in {example}")
    parser.add_argument("--config-dir", "-cd", metavar="DIR", help="find options of your own in DIR/GROUP/")
    return parser


def overrides_of(options: argparse.Namespace) -> list[str]:
    """The overrides of a command line, with its --config-dir; `options` come from a parser of overrides."""
    from t2i.config.compose import search_path

    folder = options.config_dir
    return options.overrides + ([search_path([f"file://{Path(folder).absolute()}"])] if folder is not None else [])


def parse_jobs(parser: Parser, arguments: list[str] | None) -> tuple[argparse.Namespace, list[Job]]:
    """The options and the jobs of a command line; `parser` comes from `overrides_parser`."""
    from t2i.config.compose import expand
    from t2i.config.misspelt import refuse_flags
    from t2i.runs.inheritance import with_parents

    parser.add_argument("-m", "--multirun", action="store_true", help="treat lists of values (a,b) as a sweep")
    refuse_flags(sys.argv[1:] if arguments is None else arguments, parser.flags())
    options = parser.parse_intermixed_args(arguments)
    overrides = with_parents(overrides_of(options))
    if not options.multirun:
        return options, [Job(overrides, "run")]
    jobs = expand(overrides)
    varied = [[text for override, text in job if override.is_sweep_override()] for job in jobs]
    names = [" ".join(texts) or "run" for texts in varied]
    return options, [Job(with_parents([text for _, text in job]), name) for job, name in zip(jobs, names, strict=True)]
