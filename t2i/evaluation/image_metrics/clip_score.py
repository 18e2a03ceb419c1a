"""How well images match their prompts, by the cosine of their CLIP features."""

from typing import ClassVar

import numpy as np
import torch

from t2i.evaluation.image_metrics.features import features, identity
from t2i.evaluation.image_metrics.metric import Judged, Scores
from t2i.evaluation.image_metrics.network import FeatureNetwork


class ClipScore:
    """The cosine of the features of an image and of its prompt (Hessel et al. 2021, arXiv 2104.08718).

    Times 100 it is torchmetrics' CLIPScore, and times 2.5 the paper's, both of which turn negative ones into 0. Scores
    of different networks can't be compared; SigLIP's are far smaller than CLIP's.
    """

    better: ClassVar[str] = "higher"
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, model: str, revision: str | None, batch_size: int):
        self.network = FeatureNetwork(
            setting="metric.clip_score.model", model=model, revision=revision, batch_size=batch_size, reads_text=True
        )

    def check(self) -> None:
        self.network.check()

    def __call__(self, judged: Judged, device: torch.device, cache_dir: str | None) -> Scores:
        cosines, _, notes = match(self.network, judged, device, cache_dir)
        return Scores(cosines, float(cosines.mean()), match_identity(self.network, cache_dir), notes)


class PickScore:
    """What people would rather pick: the logit of a CLIP that was trained on their choices (Kirstain et al. 2023).

    arXiv 2305.01569. The difference of two images' scores is the log of the odds that the first is picked.
    """

    better: ClassVar[str] = "higher"
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, model: str, processor: str | None, revision: str | None, batch_size: int):
        """processor: folder or id of the image processor and the tokenizer; None: they are in that of the model."""
        self.network = FeatureNetwork(
            setting="metric.pick_score.model",
            model=model,
            processor=processor,
            revision=revision,
            batch_size=batch_size,
            reads_text=True,
        )

    def check(self) -> None:
        self.network.check()

    def __call__(self, judged: Judged, device: torch.device, cache_dir: str | None) -> Scores:
        cosines, scale, notes = match(self.network, judged, device, cache_dir)
        logits = scale * cosines
        return Scores(logits, float(logits.mean()), match_identity(self.network, cache_dir), notes)


def match(
    network: FeatureNetwork, judged: Judged, device: torch.device, cache_dir: str | None
) -> tuple[np.ndarray, float, list[str]]:
    """Cosines of images and prompts, [P, S]; the network's factor of them (exp of logit_scale); warnings."""
    loaded = network.load(device)
    images = features(network, judged.images, device, cache_dir, loaded).units
    prompts = loaded.texts(judged.prompts).double().numpy()
    cosines = np.einsum("psd,pd->ps", images.reshape(len(prompts), judged.seeds, -1), prompts)
    cut = loaded.cut(judged.prompts)
    notes = [
        f"{cut} of {len(prompts)} prompts are longer than the {loaded.context} tokens that {network.model} reads; what "
        "comes after them is not judged."
    ] * (cut > 0)
    return cosines, float(loaded.model.logit_scale.float().exp()), notes


def match_identity(network: FeatureNetwork, cache_dir: str | None) -> str:
    return identity(("prompt and image", *network.image_content, *network.text_content), cache_dir)
