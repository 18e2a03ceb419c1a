"""Log messages without secrets, and those of t2i without control characters, which a file's name may hold."""

import logging
import traceback
from collections.abc import Callable
from typing import Any

from t2i.config.secrets import redact
from t2i.runs.text import printable_lines


def clean_logs() -> None:
    """Clean every message that is logged from now on, by any logger to any handler."""
    make = logging.getLogRecordFactory()
    if not isinstance(make, CleanRecords):
        logging.setLogRecordFactory(CleanRecords(make))


class CleanRecords:
    """A factory of log records, around another one."""

    def __init__(self, make: Callable[..., logging.LogRecord]):
        self.make = make

    def __call__(self, *arguments: Any, **options: Any) -> logging.LogRecord:
        record = self.make(*arguments, **options)
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # arguments that do not fit, which logging reports
            return record
        clean = redact(message)
        if record.name.partition(".")[0] == "t2i":  # other libraries colour their messages
            clean = printable_lines(clean)
        if clean != message:
            record.msg, record.args = clean, ()
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = redact("".join(traceback.format_exception(*record.exc_info)).rstrip("\n"))
        return record
