"""Memorisation: which samples are nearer to a training image than unseen images are."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from t2i.config import ConfigError
from t2i.evaluation.image_metrics.features import features, identity
from t2i.evaluation.image_metrics.metric import Judged, Scores
from t2i.evaluation.image_metrics.network import FeatureNetwork

NEIGHBOURS = 2  # of a training image, by which the distance to it is measured
SAME = 1e-6  # 1 - cosine of the same image twice, up to rounding: no neighbour
SHOWN = 100  # pairs
FEW_CALLS = 0.05  # false calls that need no warning
TWINS = 0.01  # relative distance of held-out images below which a warning tells of them
BLOCK = 1024  # rows of a matrix of cosines that are in memory at a time


class Copies:
    """Whether each image is a copy of a training image, 0 or 1.

    Copies are looked for at the nearest training image in feature space (Somepalli et al. 2023, arXiv 2212.03860). But
    how near is a copy? Two emoji of a face are nearer than two photographs ever are. So the distance, 1 - cosine, is
    divided by that of the training image to its own two nearest others, as Carlini et al. (2023, arXiv 2301.13188)
    divide by that to the neighbours. And the held-out images, which nobody can have copied, say how small this relative
    distance is for unseen images of the kind. A sample is a copy if

    - its relative distance is smaller than that of all but a few held-out images, and
    - it is nearer to its training image than to any held-out image.

    If a sample is no copy, so that it could as well be one of the H held-out images, its rank among them is uniform: it
    is called a copy with probability at most max(false_calls, 1 / (H + 1)), whatever the network and the training
    images (conformal p-values, Vovk et al. 2005; the second condition can only lower it). "A few" is what false_calls
    leaves: none of fewer than 99 images at 0.02. They keep a held-out image that has a twin among the training images,
    as happens in sets with duplicates, from hiding every copy. Where more have one, only exact copies stand out, and a
    warning says so.
    """

    better: ClassVar[str] = "lower"
    needs: ClassVar[frozenset[str]] = frozenset({"references", "trained_on"})

    def __init__(self, model: str, false_calls: float, revision: str | None, batch_size: int):
        """false_calls: the probability up to which an unseen image may be called a copy; 0: the smallest possible."""
        setting = "metric.copies.model"
        self.network = FeatureNetwork(setting=setting, model=model, revision=revision, batch_size=batch_size)
        self.false_calls = false_calls

    def check(self) -> None:
        if not 0 <= self.false_calls < 1:
            raise ConfigError(
                f"metric.copies.false_calls={self.false_calls} must be a probability below 1, such as 0.02"
            )
        self.network.check()

    def __call__(self, judged: Judged, device: torch.device, cache_dir: str | None) -> Scores:
        assert judged.references is not None
        assert judged.trained_on is not None
        samples, held_out, trained_on = (
            features(self.network, images, device, cache_dir)
            for images in (judged.images, judged.references, judged.trained_on)
        )
        found = find(samples.units, held_out.units, trained_on.units, self.false_calls)
        details = {
            "copies": int(found.copies.sum()),
            "false_calls": found.false_calls,  # the expected share among images that copy nothing is at most this
            "threshold": found.threshold,
            "pairs": _pairs(judged, found),
        }
        about = f"copies {held_out.content} {trained_on.content} {self.false_calls}"
        return Scores(
            found.copies.reshape(len(judged.prompts), judged.seeds).astype(np.float64),
            float(found.copies.mean()),
            identity((about, *self.network.image_content), cache_dir),
            self._notes(found, len(held_out.values)),
            details,
        )

    def _notes(self, found: "Found", held_out: int) -> list[str]:
        notes = []
        if found.false_calls > max(self.false_calls, FEW_CALLS):
            notes.append(
                f"copies is calibrated on {held_out} held-out images alone: up to {found.false_calls:.0%} of images "
                "that copy nothing may be called copies; hold out more for fewer."
            )
        if found.threshold < TWINS:
            notes.append(
                "Held-out images have twins among the training images, and copies calls nothing a copy that is less "
                "like a training image than they are. Remove duplicates from the data set, or choose a network that "
                "tells them apart."
            )
        return notes


@dataclass(frozen=True)
class Found:
    """What is known of N samples."""

    copies: np.ndarray  # [N], bool
    which: np.ndarray  # [N], the nearest training image
    similarity: np.ndarray  # [N], the cosine to it
    to_held_out: np.ndarray  # [N], the cosine to the nearest held-out image
    relative: np.ndarray  # [N], the relative distance
    threshold: float  # below which it must be
    false_calls: float  # the probability that an image that copies nothing is called a copy is at most this


def find(samples: np.ndarray, held_out: np.ndarray, trained_on: np.ndarray, false_calls: float) -> Found:
    """The copies among samples, [N, D], by unit vectors: those of held-out, [H, D], and training images, [M, D]."""
    tolerated = max(int(false_calls * (len(held_out) + 1) + 1e-9) - 1, 0)
    which, similarity = nearest(samples, trained_on)
    to_held_out = nearest(samples, held_out)[1]
    relative = _relative(which, similarity, trained_on)
    threshold = np.sort(_relative(*nearest(held_out, trained_on), trained_on))[tolerated]
    copies = (relative < threshold) & (similarity > to_held_out)
    bound = (tolerated + 1) / (len(held_out) + 1)
    return Found(copies, which, similarity, to_held_out, relative, float(threshold), bound)


def nearest(units: np.ndarray, others: np.ndarray, block: int = BLOCK) -> tuple[np.ndarray, np.ndarray]:
    """Which of the others, [M, D], is the most similar to each unit vector, [N, D], and the cosine; both [N]."""
    found = []
    for start in range(0, len(units), block):
        cosines = units[start : start + block] @ others.T
        found.append((cosines.argmax(1), cosines.max(1)))
    which, similarity = zip(*found, strict=True)
    return np.concatenate(which), np.concatenate(similarity)


def _relative(which: np.ndarray, similarity: np.ndarray, trained_on: np.ndarray) -> np.ndarray:
    """Distances to training images, in units of the mean distance of these to their nearest others, [N]."""
    rows, back = np.unique(which, return_inverse=True)
    spreads = []
    for start in range(0, len(rows), BLOCK):
        cosines = trained_on[rows[start : start + BLOCK]] @ trained_on.T
        distances = np.where(cosines > 1 - SAME, 2.0, 1 - cosines)  # 2 is the largest: not the image itself
        spreads.append(np.sort(distances, axis=1)[:, :NEIGHBOURS].mean(1))
    return (1 - similarity).clip(0) / np.concatenate(spreads)[back]


def _pairs(judged: Judged, found: Found) -> list[dict[str, Any]]:
    """Samples and their nearest training images: the copies, then the others, by relative distance."""
    order = np.lexsort((found.relative, ~found.copies))[:SHOWN]
    return [
        {
            "prompt": int(index) // judged.seeds,
            "seed": int(index) % judged.seeds,
            "training_image": int(found.which[index]),
            "similarity": float(found.similarity[index]),
            "held_out_similarity": float(found.to_held_out[index]),
            "relative_distance": float(found.relative[index]),
            "copy": bool(found.copies[index]),
        }
        for index in order
    ]
