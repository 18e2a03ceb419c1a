"""Folders of a data set that are called by what they are for: train/, val/ and test/."""

import logging
from collections.abc import Sequence
from pathlib import PurePosixPath

from t2i.data.records import Item

log = logging.getLogger(__name__)
TRAIN = ("train", "training")
VALIDATION = ("validation", "valid", "val", "dev", "eval")
TEST = ("test", "testing")


def divided(items: Sequence[Item]) -> tuple[list[Item], list[Item], list[Item]]:
    """The items to train on, those to hold out, and those of a test set, which are left out.

    A folder counts at the top of the data set, or where there is a folder train/ next to it.
    """
    siblings = {parent.as_posix().lower() for item in items for parent in PurePosixPath(item.name).parents}
    sides: dict[str, list[Item]] = {"train": [], "validation": [], "test": []}
    for item in items:
        sides[_side(item.name.lower(), siblings)].append(item)
    train, held_out, test = sides.values()
    if not train and not held_out:  # then the name says nothing
        return test, [], []
    if not train:
        return held_out, [], test
    return train, held_out, test


def tell(held_out: Sequence[Item], test: Sequence[Item]) -> None:
    """Say what the names of the folders have decided."""
    if held_out:
        log.info("%d images are held out: they are in %s", len(held_out), _folders(held_out))
    if test:
        message = (
            "%d images are neither trained on nor held out: they are in %s (dataset.split_folders=false uses them)"
        )
        log.warning(message, len(test), _folders(test))


def left_out(test: Sequence[Item]) -> list[dict[str, str]]:
    """The items of a test set, and why they are not used."""
    reason = "is in a folder test/, which is neither trained on nor held out (dataset.split_folders=false uses it)"
    return [{"item": item.name, "reason": reason} for item in test]


def _side(name: str, siblings: set[str]) -> str:
    parents = PurePosixPath(name).parts[:-1]
    for i, part in enumerate(parents):
        counts = i == 0 or any("/".join((*parents[:i], other)) in siblings for other in TRAIN)
        if counts and part in (*VALIDATION, *TEST):
            return "validation" if part in VALIDATION else "test"
    return "train"


def _folders(items: Sequence[Item]) -> str:
    return ", ".join(sorted({f"{PurePosixPath(item.name).parent.as_posix()}/" for item in items})[:3])
