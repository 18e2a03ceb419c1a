"""What is to be said of a data set, in lines for the terminal and the page, and as JSON."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from t2i.inspection.entries import HELD_OUT, LEFT_OUT, TRAIN, Entry
from t2i.inspection.survey import Survey

MOST = 6  # values of a distribution that are listed
FEW = 8  # held-out images, which tell little
MUCH_LARGER, MUCH_CUT = 2.0, 0.34  # enlarged by more than this; a larger part of the area is cut off


@dataclass(frozen=True)
class Line:
    """A fact. warns: whether it is something to look at before training."""

    label: str
    text: str
    warns: bool = False


def lines(survey: Survey) -> list[Line]:
    """The facts of a data set, in the order in which they matter."""
    found = [*_counts(survey), *_sizes(survey), *_captions(survey), *_duplicates(survey)]
    return [line for line in found if line.text]


def serious(survey: Survey) -> list[str]:
    """What keeps training from beginning, or from meaning what it says."""
    first = [f"Training would not begin: {survey.refusal}"] if survey.refusal else []
    return first + ([sentence] if (sentence := _leaks(survey)) else [])


def _counts(survey: Survey) -> list[Line]:
    train, held_out, left_out = (survey.of(side) for side in (TRAIN, HELD_OUT, LEFT_OUT))
    measured = f"; a validation measures {survey.battery} of them" if len(held_out) > survey.battery > 0 else ""
    reasons = Counter(entry.reason for entry in left_out)
    return [
        Line("trained on", _number(len(train), "image")),
        Line(
            "held out",
            f"{_number(len(held_out), 'image')}{measured}" if held_out else "none",
            warns=len(held_out) < FEW,
        ),
        Line("left out", f"{len(left_out):,}, for {_number(len(reasons), 'reason')}" if left_out else "", warns=True),
    ]


def _sizes(survey: Survey) -> list[Line]:
    known = [entry for entry in survey.used if entry.facts.width]
    if not known:
        return []
    by_area = sorted(known, key=lambda entry: entry.facts.width * entry.facts.height)
    smallest, middle, largest = (_size(by_area[place]) for place in (0, len(by_area) // 2, -1))
    distinct = Counter(map(_size, known))
    spread = f"{smallest} to {largest}, the middle one {middle}" if len(distinct) > 1 else smallest
    most = _listed(distinct) if 1 < len(distinct) < len(known) else ""
    larger = sorted((entry for entry in known if entry.scale > 1), key=lambda entry: -entry.scale)
    enlarged = "none"
    if larger:
        enlarged = (
            f"{len(larger):,} of {len(known):,} are smaller than {survey.resolution} pixels and would be enlarged, up "
            f"to {larger[0].scale:.1f} times ({larger[0].name})"
        )
    cuts = [entry.cut for entry in known]
    much = sum(cut > MUCH_CUT for cut in cuts)
    cut = f"{sum(cuts) / len(cuts):.0%} of the area on average"
    cut += f"; {much:,} images lose more than a third (dataset.buckets=true keeps their shapes)" if much else ""
    return [
        Line("width × height", spread),
        Line("most frequent", most),
        Line("enlarged", enlarged, warns=any(entry.scale > MUCH_LARGER for entry in larger)),
        Line("cut off", cut, warns=much > len(known) / 4),
        Line("formats", _listed(Counter(entry.kind for entry in known if entry.kind))),
    ]


def _captions(survey: Survey) -> list[Line]:
    used = survey.used
    if not used:
        return []
    numbers = [len(entry.captions) for entry in used]
    each = "one each" if max(numbers) == 1 else f"{min(numbers)} to {max(numbers)} each, of which one is drawn"
    texts = Counter(caption for entry in used for caption in set(entry.captions))
    sources = Counter(entry.source for entry in used if entry.source)
    shared = [(caption, number) for caption, number in texts.most_common() if number > 1]
    same = ""
    if shared:
        caption, number = shared[0]
        several = sum(number for _, number in shared)
        same = f"{several:,} images share theirs with others; {number:,} have “{_short(caption)}”"
    return [
        Line("captions", f"{sum(numbers):,}, {each}"),
        Line("from", ", ".join(f"{source} ({number:,})" for source, number in sources.most_common(MOST))),
        Line("the same", same),
        *_tokens(survey),
    ]


def _tokens(survey: Survey) -> list[Line]:
    tokens = sorted(number for entry in survey.used for number in entry.tokens)
    if survey.limit is None or not tokens:
        return []
    long = [entry for entry in survey.used if survey.cut_off(entry)]
    text = f"{median(tokens):.0f} in the middle, {tokens[-1]} at most; {survey.model} reads {survey.limit}"
    cut = f"; {_number(len(long), 'image')} with a caption that is cut off, such as {long[0].name}" if long else ""
    return [Line("tokens of a caption", text + cut, warns=bool(long))]


def _duplicates(survey: Survey) -> list[Line]:
    contradicting = [group for group in survey.duplicates if len({entry.captions for entry in group}) > 1]
    copies = sum(len(group) - 1 for group in survey.duplicates)
    exact = f"{_number(copies, 'file')} too many, in {_number(len(survey.duplicates), 'group')}" if copies else "none"
    exact += f"; {len(contradicting)} of them with different captions" if contradicting else ""
    near = "none"
    if survey.alike:
        members = sum(map(len, survey.near_groups))
        near = f"{members:,} images in {_number(len(survey.near_groups), 'group')}"
    looked = any(entry.thumbnail for entry in survey.used)
    return [
        Line("exact duplicates", exact, warns=bool(copies)),
        Line("near duplicates", near if looked else "not looked for", warns=bool(survey.alike)),
        Line("held out and trained on", _leaks(survey) or ("none" if survey.of(HELD_OUT) else ""), bool(survey.leaks)),
    ]


def _leaks(survey: Survey) -> str:
    if not (leaks := survey.leaks):
        return ""
    held_out, first = len({id(pair.first) for pair in leaks}), leaks[0]
    are = "is" if held_out == 1 else "are"
    return (
        f"{held_out:,} of {len(survey.of(HELD_OUT)):,} held-out images {are} in the training set as well, or nearly "
        f"({first.first.name}: {first.second.name}): val/loss will look better than it is"
    )


def reasons(survey: Survey) -> dict[str, list[Entry]]:
    """Reason -> what is left out for it, the most frequent first."""
    found: dict[str, list[Entry]] = {}
    for entry in survey.of(LEFT_OUT):
        found.setdefault(entry.reason, []).append(entry)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def as_json(survey: Survey) -> dict[str, Any]:
    """Everything that was found, for scripts."""
    return {
        "command": survey.command,
        "path": survey.path,
        "model": survey.model,
        "resolution": survey.resolution,
        "refusal": survey.refusal,
        "notes": survey.notes,
        "warnings": [f"{line.label}: {line.text}" for line in lines(survey) if line.warns],
        "counts": {side: len(survey.of(side)) for side in (TRAIN, HELD_OUT, LEFT_OUT)},
        "token_limit": survey.limit,
        "images": [
            {
                "name": entry.name,
                "side": entry.side,
                "width": entry.facts.width,
                "height": entry.facts.height,
                "format": entry.kind,
                "scale": entry.scale,
                "cut": entry.cut,
                "captions": list(entry.captions),
                "tokens": list(entry.tokens),
                "source": entry.source,
                "sha256": entry.facts.sha256,
            }
            for entry in survey.used
        ],
        "left_out": [{"item": entry.name, "reason": entry.reason} for entry in survey.of(LEFT_OUT)],
        "duplicates": [[entry.name for entry in group] for group in survey.duplicates],
        "near_duplicates": [
            {"first": pair.first.name, "second": pair.second.name, "bits": pair.bits, "mirrored": pair.mirrored}
            for pair in survey.alike
        ],
        "held_out_and_trained_on": [[pair.first.name, pair.second.name] for pair in survey.leaks],
    }


def _size(entry: Entry) -> str:
    return f"{entry.facts.width} × {entry.facts.height}"


def _listed(counts: Counter) -> str:
    shown = [f"{value} ({number:,})" for value, number in counts.most_common(MOST)]
    rest = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {_number(rest, 'other')}" if rest > 0 else "")


def _number(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _short(text: str, longest: int = 60) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def first_names(entries: Sequence[Entry], most: int) -> str:
    """Some names, and how many others there are."""
    names = ", ".join(entry.name for entry in entries[:most])
    return names + (f" and {len(entries) - most:,} more" if len(entries) > most else "")
