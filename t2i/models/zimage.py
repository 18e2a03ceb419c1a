"""Z-Image (Alibaba Tongyi 2025, arXiv 2511.22699): transformer of 6 B parameters, flow, Qwen 3 as text encoder.

The transformer takes lists of images and of captions; its time runs from noise at 0 to the image at 1, and it predicts
x0 − noise.
"""

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor
from transformers import Qwen2Tokenizer, Qwen3Model

from t2i.hardware.uploads import upload
from t2i.models.base_settings import on_a_base
from t2i.models.model import Model
from t2i.models.pipeline_parts import open_pipeline
from t2i.models.tokens import caption_lengths, chat, left_aligned, padded
from t2i.models.transformer import DiffusionTransformer

CLASSES = {
    "transformer": ZImageTransformer2DModel,
    "vae": AutoencoderKL,
    "text_encoder": Qwen3Model,
    "tokenizer": Qwen2Tokenizer,
}
DTYPES = {"text_encoder": torch.bfloat16}  # Qwen 3 4B: 8 GB


class ZImage(DiffusionTransformer):
    """Conditioned on {"encoder_hidden_states": [B, L, D], "mask": [B, L]}: Qwen's last layer but one for the caption.

    The mask is 0 where there is padding; the transformer gets each caption without it.
    """

    pipeline_class = ZImagePipeline
    patch_size = 2

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        tokenizer = self.parts["tokenizer"]
        ids, mask = padded(tokenizer, chat(tokenizer, captions, thinking=True), self.max_sequence_length)
        return {"input_ids": ids, "mask": mask}

    def condition(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        encoder = self.parts["text_encoder"]
        ids, mask = upload(tokens["input_ids"], encoder.device), upload(tokens["mask"], encoder.device)
        hidden = encoder(ids, attention_mask=mask.bool(), output_hidden_states=True).hidden_states[-2]
        hidden, mask = left_aligned(hidden.float(), mask)
        return {"encoder_hidden_states": hidden, "mask": mask}

    def denoise(self, x: Tensor, t: Tensor, text: dict[str, Tensor]) -> Tensor:
        output = self.denoiser(list(x[:, :, None]), (1000 - t) / 1000, self._without_padding(text)).sample
        return -torch.stack(list(output))[:, :, 0]

    def arguments(self, text: dict[str, Tensor]) -> dict[str, list[Tensor]]:
        return {"prompt_embeds": self._without_padding(text)}

    def _without_padding(self, text: dict[str, Tensor]) -> list[Tensor]:
        pairs = zip(text["encoder_hidden_states"], caption_lengths(text), strict=True)
        return [hidden[:length] for hidden, length in pairs]


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
    parts, _ = open_pipeline(path, ZImagePipeline, CLASSES, pretrained, revision, variant, DTYPES, quantize)
    return ZImage(parts, max_sequence_length)
