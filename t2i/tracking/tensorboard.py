"""TensorBoard, which reads event files in the run folder."""

import logging
import re
import shlex
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from PIL import Image

from t2i.config import check_installed
from t2i.config.keys import flat
from t2i.tracking.run_info import RunInfo

log = logging.getLogger(__name__)


class TensorBoard:
    """`tensorboard --logdir multirun/SWEEP` shows all runs of a sweep, with curves, images and hyperparameters."""

    upload = ""

    def __init__(self):
        check_installed("tensorboard", "tracker=tensorboard", "'t2i[tensorboard]'")

    def start(self, info: RunInfo) -> tuple[None, int]:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        files = info.folder / "tensorboard"
        # The newest step may be incomplete, as images and metrics are written one after the other.
        recorded = min(info.last_step, _newest_step(files) - 1) if files.is_dir() else -1
        self.writer = SummaryWriter(files, purge_step=recorded + 1 if files.is_dir() else None)
        self.writer.add_text("config", f"```yaml\n{OmegaConf.to_yaml(info.config)}```")
        settings = {key: value for key, value in flat(info.config).items() if isinstance(value, (int, float, str))}
        events = self.writer.file_writer
        assert events is not None, "a SummaryWriter has one until it is closed"
        for summary in hparams(settings, {"val/loss": None}):  # SummaryWriter.add_hparams would make another run
            events.add_summary(summary)
        shown = info.folder.parent if info.group else info.folder
        log.info("to view the run: %s", shlex.join(["tensorboard", "--logdir", str(shown)]))
        return None, recorded

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for key, value in metrics.items():
            self.writer.add_scalar(key, value, step)
        self.writer.flush()

    def images(self, step: int, key: str, images: list[Image.Image], captions: list[str]) -> None:
        for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
            tag = re.sub(r"\W+", "_", f"{i} {caption}")
            self.writer.add_image(f"{key}/{tag}", np.asarray(image.convert("RGB")), step, dataformats="HWC")
        self.writer.flush()

    def finish(self, succeeded: bool) -> None:
        self.writer.close()


def _newest_step(files: Path) -> int:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    steps = (event.step for file in files.iterdir() for event in EventFileLoader(str(file)).Load())
    return max(steps, default=0)
