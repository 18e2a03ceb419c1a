"""Passwords and keys in the environment: they are blanked in everything that t2i writes."""

import html
import json
import os
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

NAMES = re.compile(
    r"(^|_)(TOKEN|SECRET|SECRETS|PASS|PASSWORD|PASSWD|PASSPHRASE|PWD|PAT|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|"
    r"AUTH_?KEY|ACCOUNT_KEY|SIGNING_KEY|ENCRYPTION_KEY|KAGGLE_KEY|CREDENTIALS?)(_|\d|$)|"
    r"(TOKEN|SECRET|PASSWORD|APIKEY)$",
    re.IGNORECASE,
)
PLACES = re.compile(r"_(PATH|FILE|DIR|HOME|URL|NAME)$|^(OLD)?PWD$", re.IGNORECASE)  # name where a secret is, not what
SHORTEST = 8  # characters; a shorter value would be found in ordinary words
BLANK = "[secret]"


def secrets() -> list[str]:
    """The values that look like secrets, longest first, as they are and as JSON, Python, a URL or a page has them."""
    values = {
        value
        for name, value in ((name, value.strip()) for name, value in os.environ.items())
        if len(value) >= SHORTEST and NAMES.search(name) and not PLACES.search(name)
    }
    forms = {form for value in values for form in (value, repr(value)[1:-1], quote(value, ""))}
    forms |= {html.escape(value).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") for value in values}
    forms |= {json.dumps(value, ensure_ascii=ascii_only)[1:-1] for value in values for ascii_only in (True, False)}
    return sorted(forms, key=len, reverse=True)


def redact(text: str) -> str:
    """The text without the values of environment variables whose names look like secrets."""
    for secret in secrets():
        text = re.sub(_as_written(secret), BLANK, text)
    return text


def _as_written(secret: str) -> str:
    """A pattern of a secret as YAML, Hydra, Markdown and the shell write it.

    YAML breaks lines, with or without backslashes, and doubles quotes; the others put backslashes before characters.
    """
    forms = {"'": """(?:'"'"'|'{1,2})""", "\\": r"\\+"} | dict.fromkeys(string.whitespace, r"[\s\\]+")
    return r"(?:\\\s*)*".join(forms.get(character, re.escape(character)) for character in secret)


def redact_all(tree: Any) -> Any:
    """Nested mappings and sequences as dictionaries and lists, with every text redacted."""
    if isinstance(tree, str):
        return redact(tree)
    if isinstance(tree, Mapping):
        return {redact_all(key): redact_all(value) for key, value in tree.items()}
    if isinstance(tree, Sequence) and not isinstance(tree, bytes):
        return [redact_all(value) for value in tree]
    return tree
