"""What is trained of a model: the seam for adapters such as LoRA."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch

from t2i.models.model import Model
from t2i.models.new_tokens import NewTokens
from t2i.optim.ema import WeightAverage
from t2i.optim.trained_weights import TrainedWeights

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from diffusers.schedulers.scheduling_utils import SchedulerMixin


class Adapter(Protocol):
    """Chooses the weights of a model that are trained, and writes them in the files that stock Diffusers loads."""

    needs_pretrained: bool  # whether the result is useless without the pretrained weights
    text_encoder: bool  # whether text encoders are trained, too
    quantizable: ClassVar[bool]  # whether the base may be held in few bits

    @property
    def words(self) -> NewTokens:
        """New words, whose vectors are trained."""
        return NewTokens()

    @property
    def trains_text(self) -> bool:
        """Whether weights or vectors of text encoders are trained, so that each step embeds its captions."""
        return self.text_encoder or bool(self.words)

    @property
    def saves_text(self) -> bool:
        """Whether what is exported holds weights of text encoders."""
        return self.trains_text or not self.needs_pretrained

    def attach(self, model: Model, autocast: Callable[[Callable], Callable] | None = None) -> Model:
        """Freeze what is not trained; returns the model to train.

        autocast: see `t2i.distributed.processes.autocast`; None: products are in the type of the weights.
        """
        ...

    def save(self, pipeline: "DiffusionPipeline", folder: Path) -> None:
        """Write the averaged weights, which are loaded by default."""
        ...

    def save_raw(self, pipeline: "DiffusionPipeline", folder: Path) -> None:
        """Write the raw weights next to the averaged ones."""
        ...

    def export(
        self,
        model: Model,
        scheduler: "SchedulerMixin",
        trained: TrainedWeights,
        average: WeightAverage,
        folder: Path,
        writes: bool,
    ) -> None:
        """Write the averaged weights, and the raw ones if there is an average, in float32.

        scheduler: the one trained with; with another prediction type the samples would be noise. writes: whether this
        process writes; the others only help to gather a sharded network.
        """
        pipeline = model.pipeline if self.saves_text else model.sampler
        with average.applied(torch.float32):
            if writes:
                self.save(pipeline(scheduler), folder)
        if len(average.variants()) > 1:
            with trained.replaced(trained.weights, torch.float32):
                if writes:
                    self.save_raw(pipeline(scheduler), folder)
