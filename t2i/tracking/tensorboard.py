"""TensorBoard: event files in the run folder."""

import logging
import re
import shlex
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from PIL import Image

from t2i.config import check_installed
from t2i.config.keys import flat

log = logging.getLogger(__name__)


class TensorBoard:
    """`tensorboard --logdir multirun/SWEEP` shows all the runs of a sweep, as curves, images and hyperparameters."""

    upload = ""

    def __init__(self):
        check_installed("tensorboard", "tracker=tensorboard", "'t2i[tensorboard]'")

    def start(
        self,
        folder: Path,
        name: str,
        group: str | None,
        tags: list[str],
        config: dict,
        run_id: str | None,
        last_step: int,
    ) -> tuple[None, int]:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        files = folder / "tensorboard"
        # The last step may lack a part, as images and metrics are written one after the other.
        recorded = min(last_step, _newest_step(files) - 1) if files.is_dir() else -1
        self.writer = SummaryWriter(files, purge_step=recorded + 1 if files.is_dir() else None)
        self.writer.add_text("config", f"```yaml\n{OmegaConf.to_yaml(config)}```")
        settings = {key: value for key, value in flat(config).items() if isinstance(value, (int, float, str))}
        for summary in hparams(settings, {"val/loss": None}):  # add_hparams would write them as a run of its own
            self.writer.file_writer.add_summary(summary)
        log.info("to look at it: %s", shlex.join(["tensorboard", "--logdir", str(folder.parent if group else folder)]))
        return None, recorded

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for key, value in metrics.items():
            self.writer.add_scalar(key, value, step)
        self.writer.flush()

    def images(self, step: int, key: str, images: list[Image.Image], captions: list[str]) -> None:
        for place, (image, caption) in enumerate(zip(images, captions, strict=True)):
            tag = re.sub(r"\W+", "_", f"{place} {caption}")
            self.writer.add_image(f"{key}/{tag}", np.asarray(image.convert("RGB")), step, dataformats="HWC")
        self.writer.flush()

    def finish(self, succeeded: bool) -> None:
        self.writer.close()


def _newest_step(files: Path) -> int:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    steps = (event.step for file in files.iterdir() for event in EventFileLoader(str(file)).Load())
    return max(steps, default=0)
