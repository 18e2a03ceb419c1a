"""FLUX.2 klein, the base model (Black Forest Labs 2025): transformer of 4 B parameters, flow, Qwen 3 as text encoder.

Latents are joined in patches of 2 × 2 and normalised by the statistics of a batch norm in the autoencoder. The
transformer takes sequences of them and times in [0, 1], and predicts noise − x0.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor
from transformers import Qwen2Tokenizer, Qwen3ForCausalLM

from t2i.hardware.uploads import upload
from t2i.models.base_settings import on_a_base
from t2i.models.model import Content, Model
from t2i.models.packing import patchify, unpatchify
from t2i.models.parts import PipelineParts
from t2i.models.pipeline_parts import open_pipeline
from t2i.models.tokens import chat, padded
from t2i.models.transformer import DiffusionTransformer

CLASSES = {
    "transformer": Flux2Transformer2DModel,
    "vae": AutoencoderKLFlux2,
    "text_encoder": Qwen3ForCausalLM,
    "tokenizer": Qwen2Tokenizer,
}
DTYPES = {"text_encoder": torch.bfloat16}  # Qwen 3 4B: 8 GB


PIPELINE: Any = Flux2KleinPipeline


class Flux2Klein(DiffusionTransformer):
    """Conditioned on {"encoder_hidden_states": [B, L, 3 · D]}: three of Qwen's layers side by side, without a mask.

    The latents are patches already, [B, 4 · C, h/2, w/2].
    """

    pipeline_class = PIPELINE
    patch_size = 1  # the latents are patches already
    layers = inspect.signature(PIPELINE.encode_prompt).parameters["text_encoder_out_layers"].default

    def __init__(self, parts: PipelineParts, max_sequence_length: int, distilled: bool):
        """distilled: whether the pipeline draws without guidance, in few steps."""
        super().__init__(parts, max_sequence_length)
        self.distilled = distilled

    @property
    def mu(self) -> Callable[[float], float]:
        """For the number of steps that the pipeline takes if none is given."""
        steps = inspect.signature(PIPELINE.__call__).parameters["num_inference_steps"].default
        return lambda tokens: compute_empirical_mu(int(tokens), steps)

    @property
    def settings(self) -> dict[str, bool]:
        return {"is_distilled": self.distilled}

    @property
    def text_content(self) -> list[Content]:
        return [*super().text_content, f"layers {self.layers}"]

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        tokenizer = self.parts["tokenizer"]
        ids, mask = padded(tokenizer, chat(tokenizer, captions, thinking=False), self.max_sequence_length)
        return {"input_ids": ids, "mask": mask}

    def condition(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        encoder = self.parts["text_encoder"]
        ids, mask = upload(tokens["input_ids"], encoder.device), upload(tokens["mask"], encoder.device)
        settings = {"output_hidden_states": True, "use_cache": False, "logits_to_keep": 1}
        hidden = encoder(ids, attention_mask=mask, **settings).hidden_states
        return {"encoder_hidden_states": torch.cat([hidden[layer].float() for layer in self.layers], dim=-1)}

    def moments(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        posterior = vae.encode(pixels).latent_dist
        return patchify(posterior.mean), patchify(posterior.std)

    def pixels(self, vae: Any, latents: Tensor) -> Tensor:
        return vae.decode(unpatchify(latents)).sample

    def shift_and_scale(self) -> tuple[Tensor, Tensor]:
        vae = self.parts["vae"]
        std = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
        return vae.bn.running_mean.float()[:, None, None], 1 / std.float()[:, None, None]

    def denoise(self, x: Tensor, t: Tensor, text: dict[str, Tensor]) -> Tensor:
        hidden, (height, width) = text["encoder_hidden_states"], x.shape[-2:]
        output = self.denoiser(
            x.flatten(2).transpose(1, 2),
            timestep=t / 1000,
            encoder_hidden_states=hidden,
            txt_ids=upload(places(1, 1, hidden.shape[1]), x.device).expand(len(x), -1, -1),
            img_ids=upload(places(height, width, 1), x.device).expand(len(x), -1, -1),
        ).sample
        return output.transpose(1, 2).reshape(x.shape)

    def arguments(self, text: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"prompt_embeds": text["encoder_hidden_states"]}


def places(height: int, width: int, length: int) -> Tensor:
    """Where tokens stand: zero, row, column, and place in the text, [height · width · length, 4]."""
    return torch.cartesian_prod(torch.arange(1), torch.arange(height), torch.arange(width), torch.arange(length))


@on_a_base
def load(
    path: str,
    pretrained: bool = True,
    revision: str | None = None,
    variant: str | None = None,
    max_sequence_length: int = 512,
    quantize: str | None = None,
) -> Model:
    """For max_sequence_length see `DiffusionTransformer`, for the other parameters `open_pipeline`."""
    parts, index = open_pipeline(path, Flux2KleinPipeline, CLASSES, pretrained, revision, variant, DTYPES, quantize)
    return Flux2Klein(parts, max_sequence_length, index.get("is_distilled", False))
