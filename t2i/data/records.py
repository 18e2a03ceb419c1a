"""Items as they are found, and what is to be done about those that can't be used."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from t2i.config import ConfigError
from t2i.data.images import Facts

log = logging.getLogger(__name__)
POLICIES = ("stop", "skip")


@dataclass(frozen=True)
class Item:
    """An image with what was found as its caption: a text or a list of texts, if all is well."""

    name: str  # in messages: a path, or a row
    caption: Any
    content: Callable[[], bytes]
    facts: Facts

    @property
    def captions(self) -> tuple[str, ...]:
        return (self.caption,) if isinstance(self.caption, str) else tuple(self.caption)

    @property
    def problem(self) -> str:
        """Why the item can't be used, in words that follow its name; empty if it can."""
        return self.facts.problem or _problem(self.caption)


def _problem(caption: Any) -> str:
    if caption is None:
        return "has no caption (null, or no text)"
    texts = [caption] if isinstance(caption, str) else caption
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        return f"has a caption that is no text: {caption!r}"
    if not texts or not all(text.strip() for text in texts):
        return f"has an empty caption: {caption!r}"
    return ""


def check_policy(on_error: str) -> None:
    if on_error not in POLICIES:
        raise ConfigError(f"dataset.on_error={on_error} is not known; choose from {', '.join(POLICIES)}")


def report(skipped: Sequence[dict[str, str]], number: int, path: str, on_error: str, listed: str) -> None:
    """Say which of `number` items can't be used, and where they are listed; ConfigError where `on_error` is stop."""
    if skipped and on_error == "stop":
        first = f"{skipped[0]['item']} {skipped[0]['reason']}"
        raise ConfigError(
            f"dataset.path={path}: {first} ({len(skipped)} of {number} items can't be used); mend or remove them, "
            "or leave them out with dataset.on_error=skip"
        )
    if skipped:
        log.warning(
            "%d of %d items of %s can't be used and are skipped, such as %s, which %s; %s lists them all",
            len(skipped), number, path, *skipped[0].values(), listed,
        )  # fmt: skip


def usable(items: Sequence[Item], path: str, on_error: str) -> tuple[list[Item], list[dict[str, str]]]:
    """The items without a problem, and the others with theirs; ConfigError instead where `on_error` is stop.

    The order is that of the images' hashes: the same whatever format the images come in.
    """
    skipped = [{"item": item.name, "reason": item.problem} for item in items if item.problem]
    report(skipped, len(items), path, on_error, "run.json")
    good = [item for item in items if not item.problem]
    return sorted(good, key=lambda item: (item.facts.sha256, item.captions)), skipped
