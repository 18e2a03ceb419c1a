"""Stable Diffusion XL (Podell et al. 2023, arXiv 2307.01952): UNet, two CLIP text encoders, KL autoencoder.

It is also conditioned on the size of the original image, where the crop was taken, and the size of the crop.
"""

from functools import cached_property

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from t2i.hardware.uploads import Uploaded, upload
from t2i.models.base_settings import on_a_base
from t2i.models.latent_diffusion import LatentDiffusion
from t2i.models.model import Content, Model
from t2i.models.parts import PipelineParts
from t2i.models.pipeline_parts import open_pipeline
from t2i.models.tokens import token_ids

CLASSES = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "tokenizer": CLIPTokenizer,
    "tokenizer_2": CLIPTokenizer,
}


class StableDiffusionXL(LatentDiffusion):
    """Conditioned on {"encoder_hidden_states": [B, L, D1 + D2], "text_embeds": [B, D2]}.

    The first is the last layer but one of both encoders, the second the projected end token of the larger one. The
    autoencoder stays in float32: its activations overflow in half precision.
    """

    def __init__(self, parts: PipelineParts, zeros_for_empty: bool):
        """zeros_for_empty: the empty caption is embedded as zeros, as the pipeline does for guidance."""
        super().__init__(parts)
        self.zeros_for_empty = zeros_for_empty

    @cached_property
    def pixels_per_latent(self) -> int:
        return 2 ** (len(self.parts.config("vae")["block_out_channels"]) - 1)

    @cached_property
    def empty(self) -> Uploaded:
        """The token ids of the empty caption, [1, L]."""
        return Uploaded(token_ids(self.parts["tokenizer"], [""]))

    @property
    def text_content(self) -> list[Content]:
        return [*super().text_content, f"zeros_for_empty={self.zeros_for_empty}"]

    def condition(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        first, second = self.parts["text_encoder"], self.parts["text_encoder_2"]
        outputs = [
            encoder(upload(tokens[name], encoder.device), output_hidden_states=True)
            for encoder, name in ((first, "input_ids"), (second, "input_ids_2"))
        ]
        hidden = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1).float()
        pooled = outputs[1].text_embeds.float()
        if self.zeros_for_empty:
            empty = self.empty.to(hidden.device)
            given = (tokens["input_ids"].to(hidden.device) != empty).any(1)
            hidden, pooled = hidden * given[:, None, None], pooled * given[:, None]
        return {"encoder_hidden_states": hidden, "text_embeds": pooled}

    def denoise(self, x: Tensor, t: Tensor, text: dict[str, Tensor]) -> Tensor:
        """text may hold "time_ids", [B, 6]: height and width of the original, top and left of the crop, height and
        width of the crop, in pixels. Without them the image counts as uncropped, as in the stock pipeline.
        """
        time_ids = text["time_ids"] if "time_ids" in text else self.uncropped(x)
        added = {"text_embeds": text["text_embeds"], "time_ids": time_ids}
        return self.denoiser(x, t, text["encoder_hidden_states"], added_cond_kwargs=added).sample

    def uncropped(self, x: Tensor) -> Tensor:
        """The time ids of images whose latents are x, [B, C, h, w], if they are neither cropped nor resized; [B, 6]."""
        height, width = (self.pixels_per_latent * side for side in x.shape[-2:])
        return upload(torch.tensor([height, width, 0, 0, height, width]), x.device).expand(len(x), -1)

    def pipeline(self, scheduler: SchedulerMixin) -> DiffusionPipeline:
        return self.stock_pipeline(
            StableDiffusionXLPipeline,
            scheduler=scheduler,
            force_zeros_for_empty_prompt=self.zeros_for_empty,
            add_watermarker=False,
        )


@on_a_base
def load(
    path: str,
    pretrained: bool = True,
    revision: str | None = None,
    variant: str | None = None,
    quantize: str | None = None,
) -> Model:
    """For the parameters see `open_pipeline`."""
    parts, index = open_pipeline(
        path, StableDiffusionXLPipeline, CLASSES, pretrained, revision, variant, quantize=quantize
    )
    return StableDiffusionXL(parts, index.get("force_zeros_for_empty_prompt", True))
