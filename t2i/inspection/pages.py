"""The pages of this package: one file each, whose script is named by its hash, so that no other one can run in it."""

import base64
import hashlib
from pathlib import Path
from typing import Any

from markupsafe import Markup

from t2i.comparison.page_parts import template
from t2i.config.secrets import redact
from t2i.runs.files import replacing
from t2i.runs.full_disk import naming

HERE = Path(__file__).parent


def write(file: Path, name: str, **values: Any) -> None:
    """Write the page of NAME.html and NAME.js; values: those of the template, which are escaped."""
    script = (HERE / f"{name}.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = template(HERE / f"{name}.html").render(
        style=Markup((HERE / "pages.css").read_text(encoding="utf-8")),
        script=Markup(script),
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        **values,
    )
    with naming(file), replacing(file) as temporary:
        temporary.write_text(redact(text), encoding="utf-8")
