"""Models whose text encoders are trained together with the denoiser."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from t2i.models.model import Content, Model
from t2i.models.new_tokens import NewTokens
from t2i.models.prompts import EmbeddedPrompts

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from diffusers.schedulers.scheduling_utils import SchedulerMixin
    from transformers import PreTrainedTokenizerBase


class TextTrained:
    """A model whose captions are cached as tokens, which each step embeds.

    Its `denoiser` contains the text encoders, so that the loop prepares, averages and saves one network.
    """

    def __init__(self, model: Model, words: NewTokens):
        """words: new ones, which captions may hold."""
        self.model, self.words = model, words
        self.denoiser: nn.Module = TextAndDenoiser(model)

    @property
    def trains_text(self) -> bool:
        return self.model.trains_text

    def hold(self, dtype: torch.dtype) -> None:
        self.model.hold(dtype)

    @property
    def patch_size(self) -> int:
        return self.model.patch_size

    @property
    def autoencoder(self) -> nn.Module:
        return self.model.autoencoder

    @property
    def text_encoders(self) -> Mapping[str, nn.Module]:
        return self.model.text_encoders

    @property
    def tokenizers(self) -> Mapping[str, "PreTrainedTokenizerBase"]:
        return self.model.tokenizers

    @property
    def mu(self) -> Callable[[float], float] | None:
        return self.model.mu

    @property
    def limit(self) -> tuple["PreTrainedTokenizerBase", int]:
        return self.model.limit

    @property
    def denoiser_content(self) -> Sequence[Content]:
        return [*self.model.denoiser_content, *self.model.text_content]

    @property
    def image_content(self) -> Sequence[Content]:
        return self.model.image_content

    @property
    def text_content(self) -> Sequence[Content]:
        return list(self.tokenizers.values())

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.encode(pixels)

    def embed(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Token ids: what the denoiser, which contains the text encoders, is conditioned on."""
        return self.tokenize(captions)

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        return self.model.tokenize([self.words.expanded(caption) for caption in captions])

    def condition(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.model.condition(tokens)

    def denoise(self, x: Tensor, t: Tensor, text: dict[str, Tensor]) -> Tensor:
        return self.denoiser(x, t, text)

    def decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents)

    def prompts(self, captions: Sequence[str]) -> Sequence[str] | EmbeddedPrompts:
        return self.model.prompts(captions)

    def pipeline(self, scheduler: "SchedulerMixin") -> "DiffusionPipeline":
        return self.model.pipeline(scheduler)

    def sampler(self, scheduler: "SchedulerMixin") -> "DiffusionPipeline":
        return self.model.sampler(scheduler)

    def to(self, device: torch.device) -> None:
        self.model.to(device)

    def rest(self) -> None:
        self.model.rest()

    def release(self) -> None:
        self.model.release()


class TextAndDenoiser(nn.Module):
    """Embeds token ids and denoises, as one network."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model
        self.unet, self.text_encoders = model.denoiser, nn.ModuleDict(dict(model.text_encoders))

    def forward(self, x: Tensor, t: Tensor, tokens: dict[str, Tensor]) -> Tensor:
        return self.model.denoise(x, t, tokens | self.model.condition(tokens))


def freeze_unused(model: Model) -> None:
    """Freeze encoder weights that no embedding depends on, such as the last layer of XL's smaller encoder.

    Without it, several processes would wait for gradients that never come.
    """
    encoders = model.text_encoders.values()
    weights = [weight for encoder in encoders for weight in encoder.parameters() if weight.requires_grad]
    embedded = torch.stack([tensor.sum() for tensor in model.condition(model.tokenize(["a caption"])).values()]).sum()
    for weight, gradient in zip(weights, torch.autograd.grad(embedded, weights, allow_unused=True), strict=True):
        weight.requires_grad_(gradient is not None)
