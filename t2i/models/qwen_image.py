"""Qwen-Image (Wu et al. 2025, arXiv 2508.02324): transformer of 20 B parameters, flow, Qwen 2.5 VL as text encoder.

The autoencoder is one of videos, with a mean and a standard deviation for each channel. The transformer takes packed
latents and times in [0, 1], and predicts noise − x0.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from t2i.hardware.uploads import upload
from t2i.models.base_settings import on_a_base
from t2i.models.model import Content, Model
from t2i.models.packing import pack, unpack
from t2i.models.parts import PipelineParts
from t2i.models.pipeline_parts import open_pipeline
from t2i.models.tokens import caption_lengths, left_aligned, padded
from t2i.models.transformer import DiffusionTransformer

CLASSES = {
    "transformer": QwenImageTransformer2DModel,
    "vae": AutoencoderKLQwenImage,
    "text_encoder": Qwen2_5_VLForConditionalGeneration,
    "tokenizer": Qwen2Tokenizer,
}
DTYPES = {"text_encoder": torch.bfloat16}  # Qwen 2.5 VL 7B: 16 GB


class QwenImage(DiffusionTransformer):
    """Conditioned on {"encoder_hidden_states": [B, L, D], "mask": [B, L]}: Qwen's last layer for the caption.

    The caption stands in a template, whose first tokens are dropped. The mask is 0 where there is padding.
    """

    pipeline_class = QwenImagePipeline

    def __init__(self, parts: PipelineParts, max_sequence_length: int):
        super().__init__(parts, max_sequence_length)
        kind: Any = QwenImagePipeline
        stock = kind(**dict.fromkeys(("scheduler", *CLASSES)))  # without weights: it knows the template
        self.template, self.dropped = stock.prompt_template_encode, stock.prompt_template_encode_start_idx

    @property
    def text_content(self) -> list[Content]:
        return [*super().text_content, f"{self.template} without {self.dropped} tokens"]

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        texts = [self.template.format(caption) for caption in captions]
        ids, mask = padded(self.parts["tokenizer"], texts, self.max_sequence_length + self.dropped)
        return {"input_ids": ids, "mask": mask}

    def condition(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        encoder = self.parts["text_encoder"]
        ids, mask = upload(tokens["input_ids"], encoder.device), upload(tokens["mask"], encoder.device)
        output = encoder(ids, attention_mask=mask, output_hidden_states=True, logits_to_keep=1)
        hidden, mask = left_aligned(output.hidden_states[-1].float(), mask)
        return {"encoder_hidden_states": hidden[:, self.dropped :], "mask": mask[:, self.dropped :]}

    def moments(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        posterior = vae.encode(pixels[:, :, None]).latent_dist  # a video of one frame
        return posterior.mean[:, :, 0], posterior.std[:, :, 0]

    def pixels(self, vae: Any, latents: Tensor) -> Tensor:
        return vae.decode(latents[:, :, None]).sample[:, :, 0]

    def shift_and_scale(self) -> tuple[Tensor, Tensor]:
        vae = self.parts["vae"]
        mean, std = (
            torch.tensor(values, device=vae.device) for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        return mean[:, None, None], 1 / std[:, None, None]

    def denoise(self, x: Tensor, t: Tensor, text: dict[str, Tensor]) -> Tensor:
        height, width = x.shape[-2:]
        hidden, mask = _up_to_the_longest(text)
        output = self.denoiser(
            pack(x),
            timestep=t / 1000,
            encoder_hidden_states=hidden,
            encoder_hidden_states_mask=None if len(set(caption_lengths(text))) == 1 else mask,  # faster without
            img_shapes=[[(1, height // 2, width // 2)]] * len(x),
        ).sample
        return unpack(output, height, width)

    def arguments(self, text: dict[str, Tensor]) -> dict[str, Tensor]:
        hidden, mask = _up_to_the_longest(text)
        return {"prompt_embeds": hidden, "prompt_embeds_mask": mask}


def _up_to_the_longest(text: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The captions of a batch, and their mask, without the padding that all of them have."""
    mask = text["mask"][:, : max(caption_lengths(text))]
    return text["encoder_hidden_states"][:, : mask.shape[1]], mask


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
    parts, _ = open_pipeline(path, QwenImagePipeline, CLASSES, pretrained, revision, variant, DTYPES, quantize)
    return QwenImage(parts, max_sequence_length)
