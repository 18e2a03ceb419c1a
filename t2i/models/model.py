"""What a model family has to offer to the loop, the cache, validation, sampling and export."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, Union

import torch
from torch import Tensor, nn

from t2i.models.prompts import EmbeddedPrompts

if TYPE_CHECKING:  # a command that only checks its settings does not wait for these libraries
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from diffusers.schedulers.scheduling_utils import SchedulerMixin
    from transformers import PreTrainedTokenizerBase

# What changes the output of an encoder: a file, a tokenizer, a setting.
Content: TypeAlias = Union[Path, "PreTrainedTokenizerBase", str]


class Model(Protocol):
    """A model family. B: images; pixels are [B, 3, H, W] in [-1, 1], latents [B, C, h, w]."""

    @property
    def denoiser(self) -> nn.Module:
        """The network that is trained."""
        ...

    @denoiser.setter
    def denoiser(self, network: nn.Module) -> None:
        """Replace it, by itself in a wrapper for several processes."""
        ...

    @property
    def trains_text(self) -> bool:
        """Whether its text encoders can be trained together with the denoiser."""
        ...

    def hold(self, dtype: torch.dtype) -> None:
        """Read the denoiser, which was not used yet, in the type that it is held in."""
        ...

    @property
    def patch_size(self) -> int:
        """The denoiser takes squares of so many latents on a side as tokens; a flow may shift by their number."""
        ...

    @property
    def autoencoder(self) -> nn.Module:
        """The network between pixels and latents."""
        ...

    @property
    def text_encoders(self) -> Mapping[str, nn.Module]:
        """The text encoders, under their names in the pipeline."""
        ...

    @property
    def tokenizers(self) -> Mapping[str, "PreTrainedTokenizerBase"]:
        """The tokenizers, under their names in the pipeline."""
        ...

    @property
    def mu(self) -> Callable[[float], float] | None:
        """The pipeline's shift by the number of tokens, where the scheduler's file does not say it."""
        ...

    @property
    def limit(self) -> tuple["PreTrainedTokenizerBase", int]:
        """The number of tokens at which captions are cut, by which tokenizer."""
        ...

    @property
    def denoiser_content(self) -> Sequence[Content]:
        """Everything that changes the output of `denoiser` as it was read, besides the settings of the model."""
        ...

    @property
    def image_content(self) -> Sequence[Content]:
        """Everything that changes the output of `encode`: the key of the cached latents."""
        ...

    @property
    def text_content(self) -> Sequence[Content]:
        """Everything that changes the output of `embed`: the key of the cached captions."""
        ...

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents, scaled as the denoiser expects them."""
        ...

    def embed(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """What the denoiser is conditioned on, by name, each [B, ...], in float32 or integers.

        `mask`, [B, L], is 0 at the places of `encoder_hidden_states`, [B, L, D], that the denoiser does not see. The
        cache stores what it sees for each caption, and returns zeros at the other places.
        """
        ...

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Token ids by name, each [B, L]; captions are cut at the encoder's length."""
        ...

    def condition(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the denoiser is conditioned on, from token ids; differentiable."""
        ...

    def denoise(self, x: Tensor, t: Tensor, text: dict[str, Tensor]) -> Tensor:
        """The prediction for noised latents x at times t, [B]; the only call that is trained."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels of clean latents; they may exceed [-1, 1] slightly."""
        ...

    def prompts(self, captions: Sequence[str]) -> Sequence[str] | EmbeddedPrompts:
        """What a stock pipeline can be asked for: embedded now where the text encoders are too large to be kept."""
        ...

    def pipeline(self, scheduler: "SchedulerMixin") -> "DiffusionPipeline":
        """A stock pipeline around the current weights."""
        ...

    def sampler(self, scheduler: "SchedulerMixin") -> "DiffusionPipeline":
        """A stock pipeline that draws `prompts`: without the text encoders if those are embedded."""
        ...

    def to(self, device: torch.device) -> None:
        """Move the frozen networks, including those that are read later."""
        ...

    def rest(self) -> None:
        """Move the networks that are not trained off the GPU until they are used again."""
        ...

    def release(self) -> None:
        """Free the memory of the networks that are not trained; they are read again when they are needed."""
        ...
