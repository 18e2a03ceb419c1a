"""Images that the base draws before it is trained, once for all runs: they are kept in the cache."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from omegaconf import DictConfig

from t2i.config.instantiate import build
from t2i.data.fingerprints import hash_of
from t2i.distributed.processes import assigned
from t2i.models.model import Model
from t2i.optim.precision import resolve_precision
from t2i.rng import generator
from t2i.runs.files import replacing
from t2i.sampling.images import FORWARD_BATCH, draw

log = logging.getLogger(__name__)


class Base:
    """The model of a configuration as it is read, and what it has drawn, with the steps and guidance of `samples`."""

    def __init__(self, cfg: DictConfig, accelerator: Accelerator):
        self.cfg, self.accelerator = cfg, accelerator
        self.model: Model = build(cfg, "model")
        self.scheduler: Any = build(cfg, "scheduler")
        self.how = {"steps": cfg.samples.steps, "guidance_scale": cfg.samples.guidance_scale}
        self.cache = Path(cfg.cache_dir).expanduser()

    def folder(self, kind: str, **facts: Any) -> Path:
        """The folder of some images in the cache, by everything that determines them. facts: besides the base."""
        facts |= {
            "model": {key: value for key, value in self.cfg.model.items() if key != "path"},
            "scheduler": [type(self.scheduler).__name__, dict(self.scheduler.config)],
            "samples": list(self.how.values()),
        }
        content = [*self.model.denoiser_content, *self.model.text_content, *self.model.image_content]
        key = hash_of(*content, json.dumps(facts, sort_keys=True, default=str), memory=self.cache / "hashes")
        return self.cache / kind / key

    def draw_missing(self, folder: Path, wanted: Sequence[tuple[str, int]]) -> None:
        """Draw what the folder lacks; the processes share the work.

        wanted: prompt and number of each image; the noise depends on these two only. The n-th is n.png, of 5 digits.
        """
        folder.mkdir(parents=True, exist_ok=True)
        missing = [place for place in range(len(wanted)) if not (folder / f"{place:05d}.png").is_file()]
        missing = gather_object([missing])[0]  # every process takes what the first one found
        if missing:
            prompts = list(dict.fromkeys(wanted[place][0] for place in missing))
            what = repr(prompts[0]) if len(prompts) == 1 else f"{len(prompts)} prompts"
            log.info("drawing %d images of %s into %s", len(missing), what, folder)
            pipeline, asked = self._pipeline(prompts)
            batches = [missing[start : start + FORWARD_BATCH] for start in range(0, len(missing), FORWARD_BATCH)]
            for done, batch in enumerate(assigned(batches, self.accelerator), start=1):
                places = [prompts.index(wanted[place][0]) for place in batch]
                randoms = [_noise(*wanted[place]) for place in batch]
                for place, image in zip(batch, draw(pipeline, asked, places, randoms, **self.how), strict=True):
                    with replacing(folder / f"{place:05d}.png") as file:
                        image.save(file, format="PNG")
                log.info("%d of %d batches drawn", done, len(batches))
        gather_object([None])  # none goes on before all are there

    def _pipeline(self, prompts: Sequence[str]) -> tuple[Any, Any]:
        """The base's pipeline, and what it is asked for."""
        self.model.hold(resolve_precision(**self.cfg.precision).compute)
        self.model.to(self.accelerator.device)
        asked = self.model.prompts(prompts)
        self.model.denoiser.to(self.accelerator.device).eval()
        return self.model.sampler(self.scheduler), asked


def _noise(prompt: str, number: int) -> Any:
    seed = int(hashlib.sha256(prompt.encode()).hexdigest()[:16], 16)
    return generator(seed, "class_image", number)
