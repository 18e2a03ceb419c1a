"""The models whose images are put side by side: those of compared runs, or of folders of images with an index."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from t2i.comparison.grouping import compare
from t2i.comparison.results import Result, read_results
from t2i.comparison.verdicts import Comparison
from t2i.config import ConfigError
from t2i.runs.image_files import IN_NAME, INDEX, ImageFiles, all_images, read_images
from t2i.runs.judgements import Shown
from t2i.runs.text import printable

REMEDY = "`t2i evaluate PATH` draws them"
Images = Mapping[str, ImageFiles]  # by the battery's hash


@dataclass(frozen=True, eq=False)
class Contestant:
    """A model, and its images for the battery."""

    folder: Path
    step: int
    images: ImageFiles
    hashes: dict[tuple[int, int], str] = field(default_factory=dict)  # those computed so far

    @cached_property
    def drawn(self) -> set[tuple[int, int]]:
        """(prompt, seed) of the images that there are."""
        images = self.images
        cells = {(prompt, seed) for prompt in range(len(images.prompts)) for seed in images.seeds}
        return cells - set(images.missing())

    def shown(self, prompt: int, seed: int, below: Path) -> Shown:
        """What a vote keeps of an image of this model; `below` is the folder of the votes."""
        if (prompt, seed) not in self.hashes:
            content = self.images.file(prompt, seed).read_bytes()
            self.hashes[prompt, seed] = hashlib.sha256(content).hexdigest()
        return Shown(Path(os.path.relpath(self.folder, below)).as_posix(), self.step, self.hashes[prompt, seed])


@dataclass(frozen=True)
class Contest:
    """Variants of one battery, by label; each has a model for each training seed."""

    variants: dict[str, dict[tuple, Contestant]]
    baseline: str
    battery: str
    prompts: list[str]
    notes: list[str]  # how the runs were pooled, and what is left out


def read_contest(
    paths: Sequence[Path], by: Sequence[str] | None = None, baseline: str | None = None, step: int | None = None
) -> Contest:
    """The contest between the runs in and below `paths`, each at the step at which t2i compare compares it.

    A path may be a folder of images with an index instead; that is a variant with its own name.
    """
    folders = {path.resolve(): read_images(path) for path in paths if (path / INDEX).is_file()}
    images: dict[Path, Images] = {folder: {found.hash: found} for folder, found in folders.items()}
    others = [path for path in paths if path.resolve() not in folders]
    comparison = compare(read_results(others), by, baseline, step) if others else None
    runs = {run.folder: run for run in comparison.runs} if comparison else {}
    images |= {folder: _at_its_step(run) for folder, run in runs.items()}
    battery = _shared_battery(images, runs)

    variants: dict[str, dict[tuple, Contestant]] = {}
    for variant in comparison.variants if comparison else ():
        variants[variant.label] = {
            pair: Contestant(run.folder, run.step or 0, images[run.folder][battery])
            for pair, run in variant.runs.items()
        }
    pairs = list(dict.fromkeys(pair for models in variants.values() for pair in models)) or [(None,)]
    for folder, label in _names(list(folders)).items():  # a model without a training seed meets those of all seeds
        variants[label] = dict.fromkeys(pairs, Contestant(folder, 0, images[folder][battery]))
    if len(variants) < 2:
        raise ConfigError("there is only one variant, and nothing to compare it with; pass the runs of two or more")
    label = comparison.baseline.label if comparison else next(iter(variants))
    prompts = next(iter(images.values()))[battery].prompts
    return Contest(variants, label, battery, prompts, _notes(comparison, variants))


def _notes(comparison: Comparison | None, variants: Mapping[str, Mapping[tuple, Contestant]]) -> list[str]:
    notes = []
    if comparison:
        notes += comparison.notes
        notes += [f"{run.name} is left out: {why}." for run, why in comparison.left_out.items()]
    return notes + _incomplete(variants)


def _at_its_step(run: Result) -> Images:
    return {battery: images for (battery, step), images in all_images(run.folder).items() if step == run.step}


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    """Each folder's path below what all have in common."""
    parent = os.path.commonpath([folder.parent for folder in folders]) if folders else ""
    return {folder: printable(os.path.relpath(folder, parent)) for folder in folders}


def _shared_battery(images: Mapping[Path, Images], runs: Mapping[Path, Result]) -> str:
    """The hash of the battery that all have images of; of several, the one with the most images."""
    without = [runs[folder] for folder, found in images.items() if not found]
    if without:
        listed = ", ".join(f"{run.name} (step {run.step})" for run in without)
        raise ConfigError(f"these runs have no images at the step at which they are compared: {listed}; {REMEDY}")
    shared = set.intersection(*(set(found) for found in images.values()))
    if not shared:
        listed = defaultdict(list)
        for folder, found in images.items():
            listed[" and ".join(sorted(battery[:IN_NAME] for battery in found))].append(folder.name)
        lines = "".join(f"\n  battery {key}: {', '.join(names)}" for key, names in listed.items())
        raise ConfigError(
            "these images can't be put side by side, as their prompts, seeds, sampler or guidance differ; "
            f"`t2i evaluate PATH` draws those of one battery for all runs{lines}"
        )
    fewest = {battery: min(_count(found[battery]) for found in images.values()) for battery in shared}
    return max(sorted(shared), key=fewest.__getitem__)


def _count(images: ImageFiles) -> int:
    return len(images.prompts) * len(images.seeds) - len(images.missing())


def _incomplete(variants: Mapping[str, Mapping[tuple, Contestant]]) -> list[str]:
    notes = []
    for contestant in dict.fromkeys(each for runs in variants.values() for each in runs.values()):
        if missing := len(contestant.images.missing()):
            notes.append(f"{printable(contestant.folder.name)} lacks {missing} images; {REMEDY}.")
    return notes
