"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022): UNet, one CLIP text encoder, KL autoencoder.

2.x differs in its files alone: a larger text encoder, saved without its last layer; a tokenizer that pads with `!`;
wider attention heads; and, at 768 pixels, a scheduler with prediction_type v_prediction.
"""

from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from t2i.hardware.uploads import upload
from t2i.models.base_settings import on_a_base
from t2i.models.latent_diffusion import LatentDiffusion
from t2i.models.model import Model
from t2i.models.pipeline_parts import open_pipeline

CLASSES = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "tokenizer": CLIPTokenizer,
}


class StableDiffusion(LatentDiffusion):
    """Conditioned on {"encoder_hidden_states": [B, L, D]}, the output of the text encoder."""

    def condition(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        encoder = self.parts["text_encoder"]
        output = encoder(upload(tokens["input_ids"], encoder.device))
        return {"encoder_hidden_states": output.last_hidden_state.float()}

    def denoise(self, x: Tensor, t: Tensor, text: dict[str, Tensor]) -> Tensor:
        return self.denoiser(x, t, text["encoder_hidden_states"]).sample

    def pipeline(self, scheduler: SchedulerMixin) -> DiffusionPipeline:
        return self.stock_pipeline(
            StableDiffusionPipeline,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
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
    parts, _ = open_pipeline(path, StableDiffusionPipeline, CLASSES, pretrained, revision, variant, quantize=quantize)
    return StableDiffusion(parts)
