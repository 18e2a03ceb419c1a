"""What the families with a diffusion transformer share."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from t2i.config import ConfigError
from t2i.models.latent_diffusion import LatentDiffusion
from t2i.models.model import Content
from t2i.models.parts import PipelineParts
from t2i.models.prompts import EmbeddedPrompts

AT_ONCE = 8  # captions that a text encoder embeds at once: all its layers' outputs are kept


class DiffusionTransformer(LatentDiffusion):
    """A family whose text encoders are large: they embed captions before training, and are not kept.

    `denoise` takes the times of Diffusers' FlowMatchEulerDiscreteScheduler, sigma · num_train_timesteps, and predicts
    noise − x0 (or, in PixArt, the noise), whatever the transformer itself takes and predicts.
    """

    pipeline_class: ClassVar[Any]
    instead: ClassVar[dict[str, None]] = {}  # arguments of the pipeline whose defaults contradict embedded captions
    trains_text, reads_as_held = False, True

    def __init__(self, parts: PipelineParts, max_sequence_length: int):
        """max_sequence_length: of how many tokens the sequence of a caption is, however long the caption.

        Raises ConfigError if there can't be so many; there may be none of an encoder that the pipeline comes without.
        """
        super().__init__(parts)
        least = 0 if parts.absent else 1
        if not isinstance(max_sequence_length, int) or max_sequence_length < least:
            raise ConfigError(
                f"model.max_sequence_length={max_sequence_length} must be a number of tokens, {least} or more"
            )
        self.max_sequence_length = max_sequence_length

    @property
    def settings(self) -> dict[str, Any]:
        """Further arguments that the stock pipeline is made with."""
        return {}

    @property
    def text_content(self) -> list[Content]:
        types = {name: str(self.parts.dtypes.get(name)) for name in self.parts.names("text_encoder")}
        return [*super().text_content, f"{type(self).__name__}: {self.max_sequence_length} tokens, {types}"]

    @property
    def patch_size(self) -> int:
        """The transformer takes squares of so many latents on a side as tokens."""
        return self.parts.config("transformer").get("patch_size", 1)

    @property
    def limit(self) -> tuple[PreTrainedTokenizerBase, int]:
        return list(self.tokenizers.values())[-1], self.max_sequence_length

    def embed(self, captions: Sequence[str]) -> dict[str, Tensor]:
        embed = super().embed
        parts = [embed(captions[start : start + AT_ONCE]) for start in range(0, len(captions), AT_ONCE)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    @abstractmethod
    def arguments(self, text: dict[str, Tensor]) -> dict[str, Any]:
        """Embedded captions as arguments of the stock pipeline."""
        ...

    def prompts(self, captions: Sequence[str]) -> EmbeddedPrompts:
        if not captions:
            return EmbeddedPrompts({}, {}, self.arguments, self.instead)
        return EmbeddedPrompts(self.embed(captions), self.embed([""]), self.arguments, self.instead)

    def pipeline(self, scheduler: SchedulerMixin) -> DiffusionPipeline:
        return self.stock_pipeline(self.pipeline_class, scheduler=scheduler, **self.settings)

    def sampler(self, scheduler: SchedulerMixin) -> DiffusionPipeline:
        unread = dict.fromkeys(self.parts.names("text_encoder"))
        return self.stock_pipeline(self.pipeline_class, scheduler=scheduler, **self.settings, **unread)
