"""Items, and the treatment of those that can't be used: stop, or skip and list them."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from t2i.config import ConfigError
from t2i.data.images import Facts
from t2i.data.masks import Mask

log = logging.getLogger(__name__)
LONGEST = 1_000_000  # characters of an image's captions; a tokenizer takes minutes for more
POLICIES = ("stop", "skip")


@dataclass(frozen=True)
class Item:
    """An image with its caption as the data set has it: a text or a list of texts, if it can be used."""

    name: str  # in messages: a path, or a row
    caption: Any
    content: Callable[[], bytes]
    facts: Facts
    for_validation: bool = False  # the data set itself sets the item apart for validation
    mask: Mask | None = None
    loss_weight: Any = 1.0  # what it counts in the loss: a number that is at least 0, if it can be used
    source: int = 0  # of several, with the settings below
    uses: float = 1.0  # how often it is drawn in an epoch, on average
    may_be_held_out: bool = True
    caption_source: str = ""  # where the caption comes from: a metadata file, *.txt, a column, dataset.caption

    @property
    def captions(self) -> tuple[str, ...]:
        return (self.caption,) if isinstance(self.caption, str) else tuple(self.caption)

    @property
    def problem(self) -> str:
        """Why the item can't be used, as the rest of a sentence that begins with its name; empty if it can."""
        return self.facts.problem or _problem(self.caption) or _problem_of_weight(self.loss_weight)


def _problem(caption: Any) -> str:
    if caption is None:
        return "has no caption (it is null, or not text)"
    texts = [caption] if isinstance(caption, str) else caption
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        return f"has a caption that is not text: {caption!r}"
    if not texts or not all(text.strip() for text in texts):
        return f"has an empty caption: {caption!r}"
    if (length := sum(map(len, texts))) > LONGEST:
        return f"has a caption of {length} characters; it may have {LONGEST}"
    return ""


def _problem_of_weight(weight: Any) -> str:
    if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 <= weight < math.inf:
        return f"has a loss weight that is no number of at least 0: {weight!r}"
    return ""


@dataclass(frozen=True)
class Found:
    """What is in a data set, before it is divided."""

    items: Sequence[Item]
    unread: Sequence[dict[str, str]] = ()  # what is there and neither trained on nor held out: `item` and `reason`


def check_policy(on_error: str) -> None:
    if on_error not in POLICIES:
        raise ConfigError(f"dataset.on_error={on_error} is not known; choose from {', '.join(POLICIES)}")


def report(skipped: Sequence[dict[str, str]], number: int, where: str, on_error: str, listed: str) -> None:
    """Warn that some of `number` items can't be used, and are listed in `listed`; ConfigError if on_error=stop.

    where: the setting that names the data set, with its value.
    """
    if not skipped:
        return
    first = f"{skipped[0]['item']} {skipped[0]['reason']}"
    if on_error == "stop":
        one = ", give all images one caption with dataset.caption," if "has no caption" in first else ","
        raise ConfigError(
            f"{where}: {first} ({len(skipped)} of {number} items can't be used); fix or remove them{one} "
            "or skip them with dataset.on_error=skip"
        )
    message = "%d of %d items of %s can't be used and are skipped (the first: %s); all are listed in %s"
    log.warning(message, len(skipped), number, where.removeprefix("dataset.path="), first, listed)


def usable(items: Sequence[Item], where: str, on_error: str) -> tuple[list[Item], list[dict[str, str]]]:
    """The usable items, and the names and problems of the others; ConfigError if there are any and on_error=stop.

    The items come in the order of their images' hashes, which is the same for every format of the data set.
    """
    skipped = [{"item": item.name, "reason": item.problem} for item in items if item.problem]
    report(skipped, len(items), where, on_error, "run.json")
    good = [item for item in items if not item.problem]
    return sorted(good, key=lambda item: (item.facts.sha256, item.captions)), skipped
