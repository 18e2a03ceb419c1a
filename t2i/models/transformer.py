"""What the families with a diffusion transformer share."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from t2i.models.latent_diffusion import LatentDiffusion
from t2i.models.model import Content
from t2i.models.prompts import EmbeddedPrompts


class DiffusionTransformer(LatentDiffusion):
    """A family whose text encoders are large: they embed captions before training, and are not kept.

    `denoise` takes the times of Diffusers' FlowMatchEulerDiscreteScheduler, sigma · num_train_timesteps, and predicts
    noise − x0 (or, in PixArt, the noise), whatever the transformer itself takes and predicts.
    """

    pipeline_class: ClassVar[Any]
    tokens: ClassVar[int]  # the length that captions are padded to and cut at
    instead: ClassVar[dict[str, None]] = {}  # arguments of the pipeline whose defaults contradict embedded captions
    trains_text, reads_as_held = False, True

    @property
    def settings(self) -> dict[str, Any]:
        """Further arguments that the stock pipeline is made with."""
        return {}

    @property
    def text_content(self) -> list[Content]:
        types = {name: str(self.parts.dtypes.get(name)) for name in self.parts.names("text_encoder")}
        return [*super().text_content, f"{type(self).__name__}: {self.tokens} tokens, {types}"]

    @abstractmethod
    def arguments(self, text: dict[str, Tensor]) -> dict[str, Any]:
        """Embedded captions as arguments of the stock pipeline."""
        ...

    def prompts(self, captions: Sequence[str]) -> EmbeddedPrompts:
        return EmbeddedPrompts(self.embed(captions), self.embed([""]), self.arguments, self.instead)

    def pipeline(self, scheduler: SchedulerMixin) -> DiffusionPipeline:
        return self.stock_pipeline(self.pipeline_class, scheduler=scheduler, **self.settings)

    def sampler(self, scheduler: SchedulerMixin) -> DiffusionPipeline:
        unread = dict.fromkeys(self.parts.names("text_encoder"))
        return self.stock_pipeline(self.pipeline_class, scheduler=scheduler, **self.settings, **unread)
