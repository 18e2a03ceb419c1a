"""The page of a data set: what to look at first, then every image, with a thumbnail of most."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t2i.inspection import pages
from t2i.inspection.entries import HELD_OUT, LEFT_OUT, TRAIN, Entry
from t2i.inspection.summary import lines, reasons, serious
from t2i.inspection.survey import Survey
from t2i.runs.text import printable

MOST_THUMBNAILS = 1500  # they are nearly all that the page weighs, some 3 kB each
MOST_GROUPS, MOST_IN_GROUP = 200, 12
LONGEST = 600  # characters of a caption
KINDS = {  # what images are filtered by, the first what is shown first
    "left out": "left out",
    "leak": "held out and trained on",
    "duplicate": "exact duplicates",
    "near": "near duplicates",
    "long": "caption cut off",
    "enlarged": "enlarged",
    "held out": "held out",
    "train": "trained on",
}
ORDINARY = {"held out", "train"}  # these are nothing to look at first


def write_page(survey: Survey, file: Path) -> None:
    """Write the page. Its images are in it, and it asks for nothing else."""
    kinds = kinds_of(survey)
    shown = sorted(survey.entries, key=lambda entry: min(map(list(KINDS).index, kinds[id(entry)])))
    places = {id(entry): place for place, entry in enumerate(shown)}
    thumbnails = _chosen(shown, kinds)
    numbers = {kind: number for kind in KINDS if (number := sum(kind in kinds[id(entry)] for entry in survey.entries))}
    looked = sum(bool(entry.thumbnail) for entry in shown)
    pages.write(
        file,
        "data",
        survey=survey,
        problems=serious(survey),
        lines=lines(survey),
        reasons={reason: [entry.name for entry in entries] for reason, entries in reasons(survey).items()},
        kinds=[(kind, KINDS[kind], number) for kind, number in numbers.items()],
        without=looked - len(thumbnails),
        thumbnails=len(thumbnails),
        data={
            "entries": [_as_data(entry, kinds[id(entry)], id(entry) in thumbnails) for entry in shown],
            "limit": survey.limit,
            "leaks": _groups([[pair.first, pair.second] for pair in survey.leaks], places),
            "duplicates": _groups(survey.duplicates, places),
            "near": _groups(survey.near_groups, places),
        },
    )


def kinds_of(survey: Survey) -> dict[int, list[str]]:
    """id of an entry -> what it is filtered by."""
    leaks, duplicates, near = (
        {id(entry) for group in groups for entry in group}
        for groups in ([[pair.first, pair.second] for pair in survey.leaks], survey.duplicates, survey.near_groups)
    )
    sides = {TRAIN: "train", HELD_OUT: "held out", LEFT_OUT: "left out"}
    return {
        id(entry): [
            *(["leak"] if id(entry) in leaks else []),
            *(["duplicate"] if id(entry) in duplicates else []),
            *(["near"] if id(entry) in near else []),
            *(["long"] if survey.cut_off(entry) else []),
            *(["enlarged"] if entry.scale > 1 else []),
            sides[entry.side],
        ]
        for entry in survey.entries
    }


def _chosen(shown: Sequence[Entry], kinds: dict[int, list[str]]) -> set[int]:
    """Whose thumbnails are on the page: what is to be looked at first, then some of the others, evenly."""
    odd = [id(entry) for entry in shown if entry.thumbnail and not set(kinds[id(entry)]) <= ORDINARY]
    rest = [id(entry) for entry in shown if entry.thumbnail and set(kinds[id(entry)]) <= ORDINARY]
    room = max(0, MOST_THUMBNAILS - len(odd))
    step = max(1.0, len(rest) / room) if room else float("inf")
    evenly = [rest[int(place * step)] for place in range(min(room, len(rest)))]
    return {*odd[:MOST_THUMBNAILS], *evenly}


def _groups(groups: Sequence[Sequence[Entry]], places: dict[int, int]) -> dict[str, Any]:
    """Groups of images by their places on the page; of many, the first."""
    found = [
        {"places": [places[id(entry)] for entry in group[:MOST_IN_GROUP]], "more": max(0, len(group) - MOST_IN_GROUP)}
        for group in groups[:MOST_GROUPS]
    ]
    return {"groups": found, "more": max(0, len(groups) - MOST_GROUPS)}


def _as_data(entry: Entry, kinds: Sequence[str], with_thumbnail: bool) -> dict[str, Any]:
    data: dict[str, Any] = {"name": printable(entry.name), "kinds": kinds, "side": entry.side}
    data |= {"reason": printable(entry.reason)} if entry.reason else {}
    if entry.captions:
        data |= {"captions": [printable(text[:LONGEST]) for text in entry.captions], "tokens": entry.tokens}
    if entry.facts.width:
        data |= {"size": [entry.facts.width, entry.facts.height], "scale": round(entry.scale, 2)}
    if entry.kind:
        data["format"] = entry.kind
    if with_thumbnail:
        data["picture"] = f"data:image/webp;base64,{base64.b64encode(entry.thumbnail).decode()}"
    return data
