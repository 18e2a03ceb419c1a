"""Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv 2403.03206): transformer, flow, two CLIPs and T5.

Medium and large differ in their files alone. The transformer takes times in [0, 1000] and predicts noise − x0.
"""

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor
from torch.nn.functional import pad
from transformers import (
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    T5EncoderModel,
    T5Tokenizer,
)

from t2i.hardware.uploads import upload
from t2i.models.base_settings import on_a_base
from t2i.models.model import Model
from t2i.models.pipeline_parts import open_pipeline
from t2i.models.tokens import token_ids
from t2i.models.transformer import DiffusionTransformer

CLASSES = {
    "transformer": SD3Transformer2DModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModelWithProjection,
    "text_encoder_2": CLIPTextModelWithProjection,
    "text_encoder_3": T5EncoderModel,
    "tokenizer": CLIPTokenizer,
    "tokenizer_2": CLIPTokenizer,
    "tokenizer_3": T5Tokenizer,
}
DTYPES = {"text_encoder_3": torch.bfloat16}  # T5-XXL: 9.5 GB


class StableDiffusion3(DiffusionTransformer):
    """Conditioned on {"encoder_hidden_states": [B, L1 + L2, D], "pooled": [B, D1 + D2]}.

    The first are the last layers but one of both CLIPs, side by side and filled up with zeros to the width of T5, and
    T5's output after them; the second the projected end tokens of the CLIPs. T5 is not masked, and is zero in a
    pipeline that was saved without it.
    """

    pipeline_class = StableDiffusion3Pipeline

    @property
    def limit(self) -> tuple[PreTrainedTokenizerBase, int]:
        if "text_encoder_3" not in self.parts.absent:
            return super().limit
        tokenizer = self.parts["tokenizer"]
        return tokenizer, tokenizer.model_max_length

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        return {
            name.replace("tokenizer", "input_ids"): token_ids(
                tokenizer, captions, self.max_sequence_length if name == "tokenizer_3" else None
            )
            for name, tokenizer in self.tokenizers.items()
        }

    def condition(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        hidden, pooled = zip(*(self._clip(tokens, suffix) for suffix in ("", "_2")), strict=True)
        clip, t5 = torch.cat(hidden, dim=-1), self._t5(tokens)
        clip = pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
        return {"encoder_hidden_states": torch.cat([clip, t5], dim=1), "pooled": torch.cat(pooled, dim=-1)}

    def _clip(self, tokens: dict[str, Tensor], suffix: str) -> tuple[Tensor, Tensor]:
        encoder = self.parts[f"text_encoder{suffix}"]
        output = encoder(upload(tokens[f"input_ids{suffix}"], encoder.device), output_hidden_states=True)
        return output.hidden_states[-2].float(), output.text_embeds.float()

    def _t5(self, tokens: dict[str, Tensor]) -> Tensor:
        if "text_encoder_3" in self.parts.absent:
            width = self.parts.config("transformer")["joint_attention_dim"]
            return torch.zeros(len(tokens["input_ids"]), self.max_sequence_length, width, device=self.parts.device)
        encoder = self.parts["text_encoder_3"]
        return encoder(upload(tokens["input_ids_3"], encoder.device)).last_hidden_state.float()

    def denoise(self, x: Tensor, t: Tensor, text: dict[str, Tensor]) -> Tensor:
        text_inputs = {"encoder_hidden_states": text["encoder_hidden_states"], "pooled_projections": text["pooled"]}
        return self.denoiser(x, timestep=t, **text_inputs).sample

    def arguments(self, text: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"prompt_embeds": text["encoder_hidden_states"], "pooled_prompt_embeds": text["pooled"]}


@on_a_base
def load(
    path: str,
    pretrained: bool = True,
    revision: str | None = None,
    variant: str | None = None,
    max_sequence_length: int = 256,
    quantize: str | None = None,
) -> Model:
    """For max_sequence_length see `DiffusionTransformer`, for the other parameters `open_pipeline`."""
    parts, _ = open_pipeline(path, StableDiffusion3Pipeline, CLASSES, pretrained, revision, variant, DTYPES, quantize)
    return StableDiffusion3(parts, max_sequence_length)
