"""FID: the Fréchet distance of Inception features (Heusel et al. 2017, arXiv 1706.08500), by torch-fidelity."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from t2i.config import ConfigError, check_installed
from t2i.evaluation.image_metrics.frechet import frechet_scores
from t2i.evaluation.image_metrics.metric import Judged, Scores
from t2i.runs.text import one_line

URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
HASH = "6726825d"  # the first digits of the file's SHA-256
PUBLISHED = (
    10_000,
    "FID is recommended from 10,000 images on (Heusel et al. 2017), and published values are of 50,000 as a rule",
)


class FID:
    """Between Inception features, 2048 numbers, of generated and of real images, whatever their size."""

    better: ClassVar[str] = "lower"
    needs: ClassVar[frozenset[str]] = frozenset({"references"})

    def __init__(self, weights: str | None, batch_size: int):
        self.network = Inception(weights, batch_size)

    def check(self) -> None:
        self.network.check()

    def __call__(self, judged: Judged, device: torch.device, cache_dir: str | None) -> Scores:
        return frechet_scores("fid", self.network, judged, device, cache_dir, PUBLISHED)


class Inception:
    """The Inception of 2015 as torch-fidelity converts it: its features equal those of the TensorFlow graph."""

    def __init__(self, weights: str | None, batch_size: int):
        """weights: the file; None: where torch.hub keeps it, and fetched if it is not there."""
        self.weights, self.batch_size = weights, batch_size

    def check(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"metric.fid.batch_size={self.batch_size} must be at least 1")
        check_installed("torch_fidelity", "metric=fid", "'t2i[fid]'")
        self._file()

    @property
    def image_content(self) -> tuple[Path, ...]:
        return (self._file(),)

    def load(self, device: torch.device) -> "Inception":
        """With its network; raises ConfigError if the file holds anything but tensors."""
        file = self._file()
        try:  # first, because torch-fidelity itself would execute a pickle
            torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # the unpickler raises anything
            raise ConfigError(
                f"metric.fid.weights={file} holds something other than tensors, or is damaged; "
                f"fetch it again from {URL}"
            ) from error
        try:
            module = import_module("torch_fidelity.feature_extractor_inceptionv3")
            self.extractor = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(file)).to(device)
        except Exception as error:  # of the import, and of a file of other weights
            raise ConfigError(
                f"metric.fid.weights={file} can't be used by torch-fidelity: {one_line(error)}; "
                f"fetch it again from {URL}"
            ) from error
        self.device = device
        return self

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """[B, 2048], float32 on the CPU."""
        pixels = [torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) for image in images]
        same_size = len({tuple(image.shape) for image in pixels}) == 1
        batches = [torch.stack(pixels)] if same_size else [image[None] for image in pixels]
        return torch.cat([self.extractor(batch.to(self.device))[0].float().cpu() for batch in batches])

    def _file(self) -> Path:
        if self.weights is not None:
            file = Path(self.weights).expanduser()
            if not file.is_file():
                raise ConfigError(
                    f"metric.fid.weights={self.weights} is no file; `curl -L -o {self.weights} {URL}` fetches it"
                )
            return file
        file = Path(torch.hub.get_dir()) / "checkpoints" / URL.rpartition("/")[2]
        if not file.is_file():
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(URL, str(file), hash_prefix=HASH, progress=False)
            except (OSError, RuntimeError) as error:  # the network, and another hash
                raise ConfigError(
                    f"metric=fid: the weights of Inception can't be fetched ({one_line(error)}); on a machine with "
                    f"network access, `curl -L -O {URL}` fetches the file for metric.fid.weights=FILE"
                ) from error
        return file
