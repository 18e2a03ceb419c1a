"""FLUX.1 dev and schnell (Black Forest Labs 2024): transformer of 12 B parameters, flow, T5 and pooled CLIP.

The transformer takes packed latents and times in [0, 1], and predicts noise − x0. Dev is distilled from guidance, whose
scale it takes as an input.
"""

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from t2i.hardware.uploads import upload
from t2i.models.base_settings import on_a_base
from t2i.models.model import Model
from t2i.models.packing import pack, unpack
from t2i.models.parts import PipelineParts
from t2i.models.pipeline_parts import open_pipeline
from t2i.models.tokens import token_ids
from t2i.models.transformer import DiffusionTransformer

CLASSES = {
    "transformer": FluxTransformer2DModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": T5EncoderModel,
    "tokenizer": CLIPTokenizer,
    "tokenizer_2": T5Tokenizer,
}
DTYPES = {"text_encoder_2": torch.bfloat16}  # T5-XXL: 9.5 GB


class Flux1(DiffusionTransformer):
    """Conditioned on {"encoder_hidden_states": [B, L, D], "pooled": [B, P]}: T5's output without a mask, CLIP's end."""

    pipeline_class = FluxPipeline
    patch_size = 2  # by packing

    def __init__(self, parts: PipelineParts, max_sequence_length: int, guidance: float):
        """guidance: the scale that a distilled transformer is told in training."""
        super().__init__(parts, max_sequence_length)
        self.guidance = guidance

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        return {
            "input_ids": token_ids(self.parts["tokenizer"], captions),
            "input_ids_2": token_ids(self.parts["tokenizer_2"], captions, self.max_sequence_length),
        }

    def condition(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        clip, t5 = self.parts["text_encoder"], self.parts["text_encoder_2"]
        pooled = clip(tokens["input_ids"].to(clip.device)).pooler_output
        hidden = t5(tokens["input_ids_2"].to(t5.device)).last_hidden_state
        return {"encoder_hidden_states": hidden.float(), "pooled": pooled.float()}

    def denoise(self, x: Tensor, t: Tensor, text: dict[str, Tensor]) -> Tensor:
        hidden, (height, width) = text["encoder_hidden_states"], x.shape[-2:]
        distilled = self.parts.config("transformer").get("guidance_embeds", False)
        output = self.denoiser(
            pack(x),
            timestep=t / 1000,
            guidance=torch.full_like(t, self.guidance, dtype=torch.float32) if distilled else None,
            pooled_projections=text["pooled"],
            encoder_hidden_states=hidden,
            txt_ids=torch.zeros(hidden.shape[1], 3, device=x.device),
            img_ids=upload(places(height // 2, width // 2), x.device),
        ).sample
        return unpack(output, height, width)

    def arguments(self, text: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"prompt_embeds": text["encoder_hidden_states"], "pooled_prompt_embeds": text["pooled"]}


def places(height: int, width: int) -> Tensor:
    """Where each patch stands: zero, its row and its column, [height · width, 3]."""
    return torch.cartesian_prod(torch.zeros(1), torch.arange(float(height)), torch.arange(float(width)))


@on_a_base
def load(
    path: str,
    pretrained: bool = True,
    revision: str | None = None,
    variant: str | None = None,
    max_sequence_length: int = 512,
    guidance: float = 1.0,
    quantize: str | None = None,
) -> Model:
    """See `Flux1` for guidance, `DiffusionTransformer` for max_sequence_length, `open_pipeline` for the others."""
    parts, _ = open_pipeline(path, FluxPipeline, CLASSES, pretrained, revision, variant, DTYPES, quantize)
    return Flux1(parts, max_sequence_length, guidance)
