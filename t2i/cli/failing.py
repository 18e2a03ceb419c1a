"""How every command fails: a line for what the user can fix, a traceback for a fault of t2i, and the exit code."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from t2i.cli.log_records import clean_logs
from t2i.config import ConfigError
from t2i.config.secrets import redact
from t2i.runs.full_disk import FULL
from t2i.runs.text import PERMIT, printable, printable_lines


def run(command: Callable[[list[str]], int | None], arguments: list[str] | None = None) -> NoReturn:
    """Call a command with its arguments (sys.argv's by default), and exit with what it returns, or as `exits` says."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _open_closed_streams()
    clean_logs()
    with exits(arguments):
        _refuse_deleted_folder()
        code = command(arguments)
        sys.stdout.flush()  # the last moment at which a closed pipe can be handled
    sys.exit(code)


@contextmanager
def exits(arguments: Sequence[str] = ()) -> Generator[None, None, None]:
    """Exit the process where the block raises an error.

    The exit code is 2 for what the user can fix, 128 + its number for a signal, and 1 for a fault of t2i. An error may
    choose another one by its attribute `exit_code`. `arguments` are searched for misspelt settings.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        advice = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        print(f"\nt2i: interrupted{advice}", file=sys.stderr)
        sys.exit(128 + getattr(error, "signum", signal.SIGINT))
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            sys.exit(128 + signal.SIGPIPE)
        if (message := explain(error, arguments)) is not None:
            print(f"t2i: {printable_lines(message)}", file=sys.stderr)
            sys.exit(getattr(error, "exit_code", 2))
        print(printable_lines(redact("".join(traceback.format_exception(error)))), file=sys.stderr, end="")
        text = printable(redact(" ".join(f"{type(error).__name__}: {error}".split())))
        print(f"t2i: {text}; please report it, with the traceback above and `t2i --version`", file=sys.stderr)
        sys.exit(1)


def explain(error: Exception, arguments: Sequence[str] = ()) -> str | None:
    """The message for an error that the user can fix, without secrets; None for any other."""
    message = _explain(error, arguments)
    return None if message is None else redact(message)


def _explain(error: Exception, arguments: Sequence[str]) -> str | None:
    if isinstance(error, ConfigError):
        return str(error)
    if "hydra.errors" in sys.modules:  # Hydra is slow to import, and has raised nothing where it was not
        from hydra.errors import HydraException, InstantiationException
        from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

        from t2i.config.misspelt import explain as explain_hydra
        from t2i.config.resolvers import refusal

        if isinstance(error, (HydraException, OmegaConfBaseException)) and (reason := refusal(error)) is not None:
            return reason
        if isinstance(error, InterpolationResolutionError):
            return f"{error.full_key}: {str(error).splitlines()[0]}"
        if isinstance(error, HydraException) and not isinstance(error, InstantiationException):
            return explain_hydra(error, arguments)
    if isinstance(error, OSError) and (error.filename is not None or error.errno in FULL):
        remedy = "; free some space there, or write elsewhere" if error.errno in FULL else ""
        remedy = f"; {PERMIT}" if isinstance(error, PermissionError) else remedy
        return printable(f"{error.filename or 'the output'}: {error.strerror}{remedy}")
    return None


def _open_closed_streams() -> None:
    """Make print work where a stream was closed, as by `>&-`; otherwise a file that is opened later takes its place."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def _refuse_deleted_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise ConfigError("the current folder no longer exists; change to one that does") from error


def _nobody_reads() -> bool:
    """Whether the reader of stdout has gone, as `head` does; if so, what is left to write is thrown away."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
