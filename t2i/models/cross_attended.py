"""Transformers that attend to the output of one text encoder, of which a mask hides the padding."""

from typing import Any, ClassVar

from torch import Tensor

from t2i.models.transformer import DiffusionTransformer


class CrossAttended(DiffusionTransformer):
    """Conditioned on {"encoder_hidden_states": [B, L, D], "mask": [B, L]}; the mask is 0 where there is padding."""

    instead: ClassVar[dict[str, None]] = {"negative_prompt": None}

    def text_inputs(self, text: dict[str, Tensor]) -> dict[str, Any]:
        """Embedded captions as arguments of the transformer."""
        return {"encoder_hidden_states": text["encoder_hidden_states"], "encoder_attention_mask": text["mask"]}

    def arguments(self, text: dict[str, Tensor]) -> dict[str, Any]:
        return {"prompt_embeds": text["encoder_hidden_states"], "prompt_attention_mask": text["mask"]}
