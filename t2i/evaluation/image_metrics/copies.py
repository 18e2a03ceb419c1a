"""Memorisation: which samples are nearer to a training image than unseen images are."""

from typing import Any, ClassVar

import numpy as np
import torch

from t2i.config import ConfigError
from t2i.evaluation.image_metrics.features import features, identity
from t2i.evaluation.image_metrics.metric import Judged, Scores
from t2i.evaluation.image_metrics.network import FeatureNetwork

SHOWN = 100  # pairs
FEW_CALLS = 0.05  # false calls that need no warning
TWINS = 0.999  # cosine of held-out and training images from which on a warning tells of them


class Copies:
    """Whether each image is a copy of a training image, 0 or 1.

    The nearest training image in feature space is where copies are looked for (Somepalli et al. 2023, arXiv 2212.03860;
    Carlini et al. 2023, arXiv 2301.13188). But how near is near depends on the kind of images: two emoji of the same
    face are nearer than two photographs ever are, and a fixed threshold calls the former copies. So the held-out
    images, which nobody can have copied, say how near to a training image an unseen image of this kind comes. A sample
    is a copy if

    - it is nearer to its nearest training image than all but a few held-out images are to theirs, and
    - it is nearer to that training image than to any held-out one.

    If a sample is no copy, so that it could as well be one of the H held-out images, its rank among them is uniform: it
    is called a copy with probability at most max(false_calls, 1 / (H + 1)), whatever the network and the number of
    training images (conformal p-values, Vovk et al. 2005; the second condition can only lower it). "A few" is what
    false_calls leaves: none of fewer than 39 images at 0.05. They keep a held-out image that has a twin among the
    training images, as happens in sets with duplicates, from hiding every copy. Where many have a twin, only exact
    copies stand out, and a warning says so.
    """

    better: ClassVar[str] = "lower"
    needs: ClassVar[frozenset[str]] = frozenset({"references", "trained_on"})

    def __init__(self, model: str, false_calls: float, revision: str | None, batch_size: int):
        """false_calls: the probability up to which an unseen image may be called a copy; 0: the smallest possible."""
        self.network = FeatureNetwork(
            setting="metric.copies.model", model=model, revision=revision, batch_size=batch_size
        )
        self.false_calls = false_calls

    def check(self) -> None:
        if not 0 <= self.false_calls < 1:
            raise ConfigError(
                f"metric.copies.false_calls={self.false_calls} must be a probability below 1, such as 0.01"
            )
        self.network.check()

    def __call__(self, judged: Judged, device: torch.device, cache_dir: str | None) -> Scores:
        assert judged.references is not None
        assert judged.trained_on is not None
        samples = features(self.network, judged.images, device, cache_dir)
        held_out = features(self.network, judged.references, device, cache_dir)
        trained_on = features(self.network, judged.trained_on, device, cache_dir)
        which, similarity = nearest(samples.units, trained_on.units)
        to_held_out = nearest(samples.units, held_out.units)[1]
        count = len(held_out.values)
        tolerated = max(int(self.false_calls * (count + 1) + 1e-9) - 1, 0)
        threshold = np.sort(nearest(held_out.units, trained_on.units)[1])[::-1][min(tolerated, count - 1)]
        copies = (similarity > threshold) & (similarity > to_held_out)
        bound = (tolerated + 1) / (count + 1)
        details = {
            "threshold": float(threshold),
            "false_calls": bound,  # the expected share of copies among images that copy nothing is at most this
            "copies": int(copies.sum()),
            "pairs": _pairs(judged, which, similarity, to_held_out, copies),
        }
        parts = (f"copies {held_out.content} {trained_on.content} {tolerated}", *self.network.image_content)
        notes = [
            f"copies is calibrated on {count} held-out images alone: up to {bound:.0%} of images that copy nothing may "
            "be called copies; hold out more for fewer."
        ] * (bound > max(self.false_calls, FEW_CALLS))
        notes += [
            f"Held-out images have twins among the training images (cosine {threshold:.5f}), and copies calls nothing "
            "a copy that is less alike. Remove duplicates from the data set, or choose a network that tells them apart."
        ] * bool(threshold > TWINS)
        values = copies.reshape(len(judged.prompts), judged.seeds).astype(np.float64)
        return Scores(values, float(values.mean()), identity(parts, cache_dir), notes, details)


def nearest(units: np.ndarray, others: np.ndarray, block: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """Which of the others, [M, D], is the most similar to each unit vector, [N, D], and the cosine; both [N]."""
    found = []
    for start in range(0, len(units), block):
        cosines = units[start : start + block] @ others.T
        found.append((cosines.argmax(1), cosines.max(1)))
    which, similarity = zip(*found, strict=True)
    return np.concatenate(which), np.concatenate(similarity)


def _pairs(
    judged: Judged, which: np.ndarray, similarity: np.ndarray, to_held_out: np.ndarray, copies: np.ndarray
) -> list[dict[str, Any]]:
    """Samples and their nearest training images, the most similar first."""
    order = np.lexsort((-similarity, ~copies))[:SHOWN]  # the copies before the others
    return [
        {
            "prompt": int(index) // judged.seeds,
            "seed": int(index) % judged.seeds,
            "training_image": int(which[index]),
            "similarity": float(similarity[index]),
            "held_out_similarity": float(to_held_out[index]),
            "copy": bool(copies[index]),
        }
        for index in order
    ]
