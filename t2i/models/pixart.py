"""PixArt-Sigma (Chen et al. 2024, arXiv 2403.04692): transformer that predicts the noise, T5 with a mask.

The transformer also predicts a variance, which neither training nor the stock pipeline uses: half of its output.
"""

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, PixArtSigmaPipeline, PixArtTransformer2DModel
from torch import Tensor
from transformers import T5EncoderModel, T5Tokenizer

from t2i.hardware.uploads import upload
from t2i.models.base_settings import on_a_base
from t2i.models.cross_attended import CrossAttended
from t2i.models.model import Model
from t2i.models.pipeline_parts import open_pipeline
from t2i.models.tokens import padded, plain

CLASSES = {
    "transformer": PixArtTransformer2DModel,
    "vae": AutoencoderKL,
    "text_encoder": T5EncoderModel,
    "tokenizer": T5Tokenizer,
}
DTYPES = {"text_encoder": torch.bfloat16}  # T5-XXL: 9.5 GB


class PixArt(CrossAttended):
    """T5's output, with its mask. The times are those of the noise schedule, as for a UNet."""

    pipeline_class = PixArtSigmaPipeline

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        ids, mask = padded(self.parts["tokenizer"], plain(captions), self.max_sequence_length)
        return {"input_ids": ids, "mask": mask}

    def condition(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        encoder = self.parts["text_encoder"]
        mask = upload(tokens["mask"], encoder.device)
        output = encoder(upload(tokens["input_ids"], encoder.device), attention_mask=mask)
        return {"encoder_hidden_states": output.last_hidden_state.float(), "mask": mask}

    def denoise(self, x: Tensor, t: Tensor, text: dict[str, Tensor]) -> Tensor:
        sizes = {"resolution": None, "aspect_ratio": None}  # which Sigma is not conditioned on
        output = self.denoiser(x, timestep=t, added_cond_kwargs=sizes, **self.text_inputs(text)).sample
        return output[:, : x.shape[1]]


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
    parts, _ = open_pipeline(path, PixArtSigmaPipeline, CLASSES, pretrained, revision, variant, DTYPES, quantize)
    return PixArt(parts, max_sequence_length)
