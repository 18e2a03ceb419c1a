"""How much images look like references, by the cosine of their features (Ruiz et al. 2023, DreamBooth)."""

from typing import ClassVar

import numpy as np
import torch

from t2i.evaluation.image_metrics.features import features, identity
from t2i.evaluation.image_metrics.jackknife import pairing
from t2i.evaluation.image_metrics.metric import Judged, Scores
from t2i.evaluation.image_metrics.network import FeatureNetwork


class Dino:
    """DreamBooth's DINO: by features that tell the subjects of one class apart (arXiv 2208.12242, section 4.1)."""

    better: ClassVar[str] = "higher"
    needs: ClassVar[frozenset[str]] = frozenset({"references"})

    def __init__(self, model: str, revision: str | None, batch_size: int):
        setting = "metric.dino.model"
        self.network = FeatureNetwork(setting=setting, model=model, revision=revision, batch_size=batch_size)

    def check(self) -> None:
        self.network.check()

    def __call__(self, judged: Judged, device: torch.device, cache_dir: str | None) -> Scores:
        return likeness(self.network, judged, device, cache_dir)


class ClipI:
    """DreamBooth's CLIP-I: the same by features of CLIP."""

    better: ClassVar[str] = "higher"
    needs: ClassVar[frozenset[str]] = frozenset({"references"})

    def __init__(self, model: str, revision: str | None, batch_size: int):
        setting = "metric.clip_i.model"
        self.network = FeatureNetwork(setting=setting, model=model, revision=revision, batch_size=batch_size)

    def check(self) -> None:
        self.network.check()

    def __call__(self, judged: Judged, device: torch.device, cache_dir: str | None) -> Scores:
        return likeness(self.network, judged, device, cache_dir)


def likeness(network: FeatureNetwork, judged: Judged, device: torch.device, cache_dir: str | None) -> Scores:
    """The cosine of an image and its prompt's reference; if prompts have none of their own, the mean over all."""
    assert judged.references is not None
    images = features(network, judged.images, device, cache_dir).units
    references = features(network, judged.references, device, cache_dir)
    if judged.reference_of is None:
        targets = np.tile(references.units.mean(0), (len(judged.prompts), 1))
    else:
        targets = references.units[np.asarray(judged.reference_of)]
    values = np.einsum("psd,pd->ps", images.reshape(len(targets), judged.seeds, -1), targets)
    about = f"likeness {references.content} {pairing(judged)}"
    return Scores(values, float(values.mean()), identity((about, *network.image_content), cache_dir))
