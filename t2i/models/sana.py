"""Sana (Xie et al. 2024, arXiv 2410.10629): linear transformer, flow, Gemma 2 with an instruction, deep autoencoder.

The autoencoder (DC-AE) halves the sides five times and is deterministic. The transformer predicts noise − x0.
"""

import inspect
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from diffusers import AutoencoderDC, SanaPipeline, SanaTransformer2DModel
from torch import Tensor
from transformers import Gemma2Model, GemmaTokenizer

from t2i.hardware.uploads import upload
from t2i.models.base_settings import on_a_base
from t2i.models.cross_attended import CrossAttended
from t2i.models.model import Content, Model
from t2i.models.pipeline_parts import open_pipeline
from t2i.models.tokens import padded, plain

CLASSES = {
    "transformer": SanaTransformer2DModel,
    "vae": AutoencoderDC,
    "text_encoder": Gemma2Model,
    "tokenizer": GemmaTokenizer,
}
DTYPES = {"text_encoder": torch.bfloat16}  # Gemma 2 2B: 5 GB


class Sana(CrossAttended):
    """Gemma's output for the instruction and the caption, of which the first and the last tokens are kept.

    The empty caption is embedded without the instruction, as the pipeline does for guidance.
    """

    pipeline_class = SanaPipeline

    @cached_property
    def instruction(self) -> str:
        """What the stock pipeline puts before every caption."""
        return "\n".join(inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default)

    @property
    def text_content(self) -> list[Content]:
        return [*super().text_content, self.instruction]

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Besides ids and mask, "kept", [B, 300]: the places of the tokens that the transformer sees."""
        tokenizer = self.parts["tokenizer"]
        tokenizer.padding_side = "right"
        length = len(tokenizer.encode(self.instruction)) + self.max_sequence_length - 2
        texts = [caption and self.instruction + caption for caption in plain(captions)]
        ids, mask = padded(tokenizer, texts, length)
        beginning = torch.arange(self.max_sequence_length)
        end = torch.cat([beginning[:1], torch.arange(length - self.max_sequence_length + 1, length)])
        return {"input_ids": ids, "mask": mask, "kept": torch.stack([end if text else beginning for text in texts])}

    def condition(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        encoder = self.parts["text_encoder"]
        ids, mask, kept = (upload(tokens[name], encoder.device) for name in ("input_ids", "mask", "kept"))
        hidden = encoder(ids, attention_mask=mask).last_hidden_state.float()
        rows = torch.arange(len(ids), device=ids.device)[:, None]
        return {"encoder_hidden_states": hidden[rows, kept], "mask": mask[rows, kept]}

    def moments(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        latents = vae.encode(pixels).latent
        return latents, torch.zeros_like(latents)

    def denoise(self, x: Tensor, t: Tensor, text: dict[str, Tensor]) -> Tensor:
        scale = self.parts.config("transformer").get("timestep_scale", 1.0)
        return self.denoiser(x, timestep=t * scale, **self.text_inputs(text)).sample


@on_a_base
def load(
    path: str,
    pretrained: bool = True,
    revision: str | None = None,
    variant: str | None = None,
    max_sequence_length: int = 300,
    quantize: str | None = None,
) -> Model:
    """For max_sequence_length see `DiffusionTransformer`, for the other parameters `open_pipeline`."""
    parts, _ = open_pipeline(path, SanaPipeline, CLASSES, pretrained, revision, variant, DTYPES, quantize)
    return Sana(parts, max_sequence_length)
