"""Which images of a data set are held out, where it does not say so itself."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from t2i.config import ConfigError
from t2i.data.images import Facts

log = logging.getLogger(__name__)
LARGEST_SHARE = 5  # a minimum holds out a fifth of the images at most


@dataclass(frozen=True)
class Fold:
    """One of K parts of a data set, in each of which every image is once. A run holds out one part."""

    number: int  # K
    index: int  # from 0 to K − 1
    images: str  # hash of all images and captions, the same in every fold


def by_hash(facts: Sequence[Facts], share: float, minimum: int) -> list[bool]:
    """Hold out the fraction `share` of the images, but at least `minimum`, or a fifth of them if that is fewer.

    The hash of an image decides, so it stays on its side when the data set grows, and its copies are on the same side.
    """
    if not facts:
        return []
    draws = [image.uniform for image in facts]
    by_share, least = sum(draw < share for draw in draws), min(minimum, max(1, len(draws) // LARGEST_SHARE))
    if by_share >= least:
        return [draw < share for draw in draws]
    last = sorted(draws)[least - 1]
    message = "dataset.validation_share=%g holds out %d of %d images, which tells little; %d are held out (%s)"
    why = "dataset.min_validation_samples" if least == minimum else "a fifth"
    log.info(message, share, by_share, len(draws), sum(draw <= last for draw in draws), why)
    return [draw <= last for draw in draws]


def by_fold(
    facts: Sequence[Facts], captions: Sequence[tuple[str, ...]], folds: int, fold: int
) -> tuple[list[bool], Fold]:
    """Hold out one of `folds` parts of equal size, into which the images are dealt in the order of their hashes.

    Copies of an image are in the same part. Raises ConfigError if there are fewer images than parts.
    """
    distinct = {sha256: place for place, sha256 in enumerate(sorted({image.sha256 for image in facts}))}
    if len(distinct) < folds:
        raise ConfigError(
            f"validation.folds={folds}: there are only {len(distinct)} different images; use as many folds at most"
        )
    content = sorted((image.sha256, texts) for image, texts in zip(facts, captions, strict=True))
    held_out = [distinct[image.sha256] % folds == fold for image in facts]
    log.info("fold %d of %d: %d of %d images are held out", fold, folds, sum(held_out), len(facts))
    return held_out, Fold(folds, fold, hashlib.sha256(repr(content).encode()).hexdigest()[:32])
