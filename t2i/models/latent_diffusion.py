"""What the families share: a denoiser of latents, an autoencoder between pixels and latents, text encoders."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from t2i.hardware.uploads import upload
from t2i.models.model import Content
from t2i.models.parts import PipelineParts
from t2i.models.prompts import EmbeddedPrompts
from t2i.models.tokens import forget_calls, token_ids


class LatentDiffusion(ABC):
    """The part of `Model` that does not depend on the family; `denoise` and `pipeline` do, and so does `condition`."""

    trains_text = True
    reads_as_held = False  # UNets are read in float32, and converted when it is known which weights are trained

    def __init__(self, parts: PipelineParts):
        self.parts = parts

    def hold(self, dtype: torch.dtype) -> None:
        if self.reads_as_held:
            self.parts.dtypes[self.parts.denoiser] = dtype

    @property
    def denoiser(self) -> nn.Module:
        return self.parts[self.parts.denoiser]

    @denoiser.setter
    def denoiser(self, network: nn.Module) -> None:
        self.parts[self.parts.denoiser] = network

    @property
    def patch_size(self) -> int:
        return 1

    @property
    def autoencoder(self) -> nn.Module:
        return self.parts["vae"]

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        return {name: self.parts[name] for name in self.parts.names("text_encoder")}

    @property
    def tokenizers(self) -> dict[str, PreTrainedTokenizerBase]:
        return {name: self.parts[name] for name in self.parts.names("tokenizer")}

    @property
    def mu(self) -> Callable[[float], float] | None:
        return None

    @property
    def limit(self) -> tuple[PreTrainedTokenizerBase, int]:
        tokenizer = next(iter(self.tokenizers.values()))
        return tokenizer, tokenizer.model_max_length

    @property
    def denoiser_content(self) -> list[Content]:
        return [*self.parts.files(self.parts.denoiser)]

    @property
    def image_content(self) -> list[Content]:
        return [*self.parts.files("vae")]

    @property
    def text_content(self) -> list[Content]:
        files = [file for name in self.parts.names("text_encoder") for file in self.parts.files(name)]
        return [*files, *self.tokenizers.values()]

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        vae, (shift, scale) = self.parts["vae"], self.shift_and_scale()
        mean, std = self.moments(vae, upload(pixels, vae.device).to(vae.dtype))
        return (mean.float() - shift) * scale, std.float() * scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        vae, (shift, scale) = self.parts["vae"], self.shift_and_scale()
        return self.pixels(vae, (latents / scale + shift).to(vae.device, vae.dtype)).float()

    def moments(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the autoencoder's latents, before they are shifted and scaled."""
        posterior = vae.encode(pixels).latent_dist
        return posterior.mean, posterior.std

    def pixels(self, vae: Any, latents: Tensor) -> Tensor:
        """The inverse of `moments`."""
        return vae.decode(latents).sample

    def shift_and_scale(self) -> tuple[float | Tensor, float | Tensor]:
        """What is subtracted from the autoencoder's latents, and what they are multiplied with after it."""
        config = self.parts["vae"].config
        return config.get("shift_factor") or 0.0, config.scaling_factor

    @torch.no_grad()
    def embed(self, captions: Sequence[str]) -> dict[str, Tensor]:
        return self.condition(self.tokenize(captions))

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """{"input_ids": [B, L]}, and "input_ids_2" where there is a second tokenizer."""
        return {
            name.replace("tokenizer", "input_ids"): token_ids(tokenizer, captions)
            for name, tokenizer in self.tokenizers.items()
        }

    @abstractmethod
    def condition(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]: ...

    def prompts(self, captions: Sequence[str]) -> Sequence[str] | EmbeddedPrompts:
        return list(captions)

    @abstractmethod
    def pipeline(self, scheduler: SchedulerMixin) -> DiffusionPipeline: ...

    def sampler(self, scheduler: SchedulerMixin) -> DiffusionPipeline:
        return self.pipeline(scheduler)

    def to(self, device: torch.device) -> None:
        self.parts.to(device)

    def rest(self) -> None:
        self.parts.rest()

    def release(self) -> None:
        self.parts.release()

    def stock_pipeline(self, pipeline_class: Any, **settings: Any) -> DiffusionPipeline:
        """A pipeline of Diffusers around the current weights.

        settings: scheduler, what is special to the class, and None for parts that it is made without.
        """
        for tokenizer in self.tokenizers.values():
            forget_calls(tokenizer)
        denoiser = getattr(self.denoiser, "module", self.denoiser)  # without the wrapper of data parallelism
        given = {**dict.fromkeys(self.parts.absent), self.parts.denoiser: denoiser, **settings}
        frozen = {name: self.parts[name] for name in self.parts.classes if name not in given}
        pipeline = pipeline_class(**frozen, **given)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline
