"""What is made of the captions of a data set: a template around each, and tags in other orders."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from t2i.config import ConfigError, check_positive
from t2i.rng import generator

PLACE = "{caption}"


@dataclass(frozen=True)
class CaptionTexts:
    """The captions that an image is trained with, from those that it has.

    template: `{caption}` stands for the caption. shuffle_tags: a caption is a list of tags between commas, which come
    in `tag_variants` orders; the first `keep_tags` stay where they are.
    """

    template: str | None = None
    shuffle_tags: bool = False
    keep_tags: int = 1
    tag_variants: int = 8

    def __post_init__(self):
        if self.template is not None and (not isinstance(self.template, str) or self.template.count(PLACE) != 1):
            raise ConfigError(
                f"dataset.caption_template={self.template} must hold {PLACE} once, as in 'sks dog, {PLACE}'; null for "
                "the captions as they are"
            )
        if not isinstance(self.keep_tags, int) or self.keep_tags < 0:
            raise ConfigError(f"dataset.keep_tags={self.keep_tags} must be a whole number, at least 0")
        check_positive("dataset.tag_variants", self.tag_variants, "use 1 or more")

    def of(self, captions: Sequence[str]) -> tuple[str, ...]:
        """All texts of an image with these captions, of which one is drawn for each use; the first is unshuffled."""
        shuffled = [text for caption in captions for text in self._orders(caption)]
        return tuple(text if self.template is None else self.template.replace(PLACE, text) for text in shuffled)

    def _orders(self, caption: str) -> list[str]:
        """The caption, and other orders of its tags: a function of the caption, so that the cache holds them."""
        tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
        kept, rest = tags[: self.keep_tags], tags[self.keep_tags :]
        if not self.shuffle_tags or len(rest) < 2:
            return [caption]
        seed = int(hashlib.sha256(caption.encode(errors="surrogatepass")).hexdigest()[:16], 16)
        orders = [generator(seed, "tags", variant).permutation(len(rest)) for variant in range(1, self.tag_variants)]
        return [caption, *(", ".join([*kept, *(rest[place] for place in order)]) for order in orders)]
