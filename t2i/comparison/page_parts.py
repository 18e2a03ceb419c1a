"""What pages are made of that need no other file: a template that escapes every value, and images as data URIs."""

import base64
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup
from matplotlib.figure import Figure

from t2i.runs.text import printable


def template(file: Path) -> Template:
    """The template in a file. A run's or a data set's texts may be a stranger's: they are escaped, and printable."""
    return Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_printable
    ).from_string(file.read_text(encoding="utf-8"))


def _printable(value: Any) -> Any:
    """What the page shows of a value: no control characters. Text that the page marks up itself is left as it is."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def svg_uri(figure: Figure) -> str:
    return data_uri("svg+xml", figure.savefig, format="svg", metadata={"Date": None})


def data_uri(kind: str, save: Callable, **options: Any) -> str:
    """An image that `save` writes, as a data URI."""
    save(file := BytesIO(), **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
