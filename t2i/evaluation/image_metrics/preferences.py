"""What people prefer, as the packages image-reward and hpsv2 predict it from an image and its prompt."""

from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from t2i.config import ConfigError, check_installed
from t2i.evaluation.image_metrics.features import identity
from t2i.evaluation.image_metrics.metric import Judged, Scores
from t2i.runs.text import one_line

HPSV2_FILES = {"v2.0": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}


class ImageReward:
    """ImageReward-v1.0 (Xu et al. 2023, arXiv 2304.05977): about a standard normal over images that people compared."""

    better: ClassVar[str] = "higher"
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, folder: str):
        """folder: that holds ImageReward.pt and med_config.json."""
        self.folder = Path(folder).expanduser()

    def check(self) -> None:
        check_installed("ImageReward", "metric=image_reward", "image-reward")
        for file in self._files:
            if not file.is_file():
                raise ConfigError(
                    f"metric.image_reward.folder={self.folder} has no {file.name}; "
                    "`hf download THUDM/ImageReward ImageReward.pt med_config.json "
                    f"--local-dir {self.folder}` fetches it"
                )

    def __call__(self, judged: Judged, device: torch.device, cache_dir: str | None) -> Scores:
        weights, config = self._files
        load = _imported("image_reward", "ImageReward").load
        with redirect_stdout(StringIO()):  # it prints where it is
            model = load(str(weights), device=device, med_config=str(config))

        def score(prompt: str, images: Sequence[Image.Image]) -> list[float]:
            with torch.no_grad():
                return [model.score(prompt, image) for image in images]

        return _scores(judged, score, identity(("image_reward", *self._files), cache_dir))

    @property
    def _files(self) -> tuple[Path, Path]:
        return self.folder / "ImageReward.pt", self.folder / "med_config.json"


class HPSv2:
    """Human Preference Score v2 (Wu et al. 2023, arXiv 2306.09341): the cosine in a CLIP-H that was trained on choices.

    The package chooses the device itself.
    """

    better: ClassVar[str] = "higher"
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, version: str):
        """version: v2.0 or v2.1, whose scores can't be compared."""
        self.version = version

    def check(self) -> None:
        if self.version not in HPSV2_FILES:
            raise ConfigError(f"metric.hpsv2.version={self.version} must be one of {', '.join(HPSV2_FILES)}")
        check_installed("hpsv2", "metric=hpsv2", "hpsv2")
        self._file()

    def __call__(self, judged: Judged, device: torch.device, cache_dir: str | None) -> Scores:
        package = _imported("hpsv2", "hpsv2")

        def score(prompt: str, images: Sequence[Image.Image]) -> list[float]:
            return package.score(list(images), prompt, hps_version=self.version)

        return _scores(judged, score, identity((f"hpsv2 {self.version}", self._file()), cache_dir))

    def _file(self) -> Path:
        """The weights in the Hub's cache, where the package looks for them."""
        from huggingface_hub import try_to_load_from_cache

        needed = (
            ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "open_clip_pytorch_model.bin"),
            ("xswu/HPSv2", HPSV2_FILES[self.version]),
        )
        found = None
        for repository, name in needed:
            found = try_to_load_from_cache(repository, name)
            if not isinstance(found, str):
                raise ConfigError(f"metric=hpsv2 needs {name} of {repository}: `hf download {repository} {name}`")
        return Path(str(found))


def _imported(metric: str, module: str) -> Any:
    try:
        return import_module(module)
    except Exception as error:  # the packages are of 2023, and may not fit the libraries of today
        raise ConfigError(
            f"metric={metric}: the package {module} can't be imported ({one_line(error)}); it may need the versions of "
            "libraries that it was made for"
        ) from error


def _scores(judged: Judged, score: Callable[[str, Sequence[Image.Image]], Sequence[float]], about: str) -> Scores:
    """score: of some images of one prompt."""
    seeds = judged.seeds
    rows = []
    for index, prompt in enumerate(judged.prompts):
        images = [judged.images[index * seeds + seed].convert("RGB") for seed in range(seeds)]
        rows.append([float(value) for value in score(prompt, images)])
    values = np.array(rows, dtype=np.float64)
    return Scores(values, float(values.mean()), about)
