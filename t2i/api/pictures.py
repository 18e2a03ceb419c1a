"""Images and figures as HTML that needs no other file, for notebooks."""

import base64
from collections.abc import Callable
from html import escape
from io import BytesIO
from typing import Any


def image_tag(image: Any, alt: str) -> str:
    """An image of Pillow."""
    image.save(file := BytesIO(), format="webp", quality=90)
    return _tag("webp", file.getvalue(), alt)


def svg(draw: Callable[[], Any], alt: str) -> str:
    """The figure of matplotlib that `draw` returns, in the style of all figures."""
    import matplotlib

    from t2i.comparison.charts import STYLE

    with matplotlib.rc_context(STYLE):
        draw().savefig(file := BytesIO(), format="svg", metadata={"Date": None})
    return _tag("svg+xml", file.getvalue(), alt)


def _tag(kind: str, content: bytes, alt: str) -> str:
    data = base64.b64encode(content).decode()
    return f'<div><img alt="{escape(alt)}" style="max-width: 100%" src="data:image/{kind};base64,{data}"></div>'
