"""Samples next to the training images that they are most like, so that everybody can judge what is a copy."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from t2i.evaluation.image_metrics.metric import Pictures
from t2i.image_grid import grid

SHOWN = 12  # pairs


def copy_pairs(
    images: Pictures, trained_on: Pictures, prompts: Sequence[str], pairs: Sequence[dict[str, Any]]
) -> Image.Image:
    """Two rows: samples, and below each its nearest training image. pairs: those of `metric=copies`."""
    seeds = len(images) // len(prompts)
    shown = pairs[:SHOWN]
    samples = [images[pair["prompt"] * seeds + pair["seed"]] for pair in shown]
    nearest = [trained_on[pair["training_image"]].resize(samples[0].size) for pair in shown]
    labels = [
        f"{prompts[pair['prompt']]}: {pair['similarity']:.3f}{', a copy' if pair['copy'] else ''}" for pair in shown
    ]
    return grid([samples, nearest], labels, ["sample", "nearest in training"])
