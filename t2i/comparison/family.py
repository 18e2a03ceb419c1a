"""Runs that go on from other runs: their family tree, what all of it cost, and what they share."""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from t2i.comparison.results import Result
from t2i.runs.text import printable, spoken_time


@dataclass
class Member:
    """A run in the tree: one of those that were read, or one that others went on from."""

    folder: Path
    name: str
    run: Result | None = None
    step: int = 0  # of its parent, at which it begins
    last: int = 0  # its own last step, or the last from which another went on
    hours: float = float("nan")  # of its own steps
    children: list["Member"] = field(default_factory=list)


def family(results: Sequence[Result]) -> list[Member]:
    """The trees of all runs that have relatives, each from its root."""
    members: dict[Path, Member] = {}
    for run in results:
        last = int(run.lines[-1]["step"]) if run.lines else 0
        members[run.folder] = Member(run.folder, run.name, run, run.forked_at, last, run.hours)
    parents: dict[Path, Path] = {}
    for run in results:
        chain = [(run.folder, members[run.folder].last), *run.ancestors]
        for (child, _), (parent, step) in pairwise(chain):
            member = members.setdefault(parent, Member(parent, _name(parent, results)))
            parents[child], members[child].step = parent, step
            if member.run is None and step > member.last:
                member.last, member.hours = step, run.hours_at(step) - _hours_before(run, parent)
    for child, parent in parents.items():
        members[parent].children.append(members[child])
    roots = [member for folder, member in members.items() if folder not in parents and member.children]
    return sorted(roots, key=lambda member: member.name)


def _hours_before(run: Result, ancestor: Path) -> float:
    """The hours that were spent before this ancestor of the run began."""
    chain = [folder for folder, _ in run.ancestors]
    older = run.ancestors[chain.index(ancestor) + 1 :]
    return run.hours_at(older[0][1]) if older else 0.0


def _name(folder: Path, results: Sequence[Result]) -> str:
    """The path of a run that was not read, below what all runs have in common."""
    common = os.path.commonpath([*(run.folder.parent for run in results), folder.parent])
    return printable(os.path.relpath(folder, common))


def tree(results: Sequence[Result]) -> list[str]:
    """The family trees as lines of text, and what they cost; none if no run went on from another."""
    roots = family(results)
    lines = [line for root in roots for line in _lines(root, "", "")]
    hours = [member.hours for root in roots for member in _walk(root) if member.hours == member.hours]
    if hours:
        lines.append(f"In total {_shown(sum(hours))}, with the steps that several runs share counted once.")
    return lines


def _lines(member: Member, first: str, others: str) -> Iterable[str]:
    of_other = "" if member.run is not None else " (not among these runs)"
    begins = f"from step {member.step} " if first else ""
    yield f"{first}{member.name}: {begins}to step {member.last}, {_shown(member.hours)}{of_other}"
    children = sorted(member.children, key=lambda child: (child.step, child.name))
    for child in children:
        last = child is children[-1]
        yield from _lines(child, f"{others}{'└─' if last else '├─'} ", f"{others}{'   ' if last else '│  '}")


def _walk(member: Member) -> Iterable[Member]:
    yield member
    for child in member.children:
        yield from _walk(child)


def _shown(hours: float) -> str:
    return "time unknown" if math.isnan(hours) else spoken_time(hours)


def name_origins(results: Sequence[Result]) -> None:
    """Give runs that began with equal runs, but for the seed, the same name of their origin: it is then no factor."""
    names: dict[str, str] = {}
    for result in sorted(results, key=lambda result: result.name):
        parent = result.info.get("parent", {})
        if isinstance(history := parent.get("history"), str) and result.config.get("from.run") is not None:
            result.config["from.run"] = names.setdefault(history, str(result.config["from.run"]))


def shared_trunks(runs: Sequence[Result]) -> list[str]:
    """A warning of compared runs that have steps in common, so that their noise is not independent."""
    sharing: dict[Path, dict[Result, int]] = {}
    for run in runs:
        sharing.setdefault(run.folder, {})[run] = int(run.step or 0)
        for folder, step in run.ancestors:
            sharing.setdefault(folder, {})[run] = step
    groups: dict[frozenset[Result], tuple[int, Path]] = {}
    for folder, steps in sharing.items():
        if len(steps) > 1:  # what two of them share ends where the earlier one leaves
            common, key = sorted(steps.values())[-2], frozenset(steps)
            groups[key] = max(groups.get(key, (0, folder)), (common, folder))
    if not groups:
        return []
    shared = "; ".join(
        f"{', '.join(sorted(run.name for run in group))} have {step} steps of {_name(folder, runs)} in common"
        for group, (step, folder) in groups.items()
    )
    return [
        f"{shared}. What chance did there is the same in all of them, and their seeds vary only what came after: the "
        "verdicts hold for runs that go on from there, and other trunks would tell whether they hold for all."
    ]
