"""Scores how well samples match their captions, with a small CLIP that was trained on the real images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from t2i.models.loading import hide_loading_bars
from t2i.tiny.vae import RESOLUTION

TINY = Path(__file__).parent


@dataclass(frozen=True)
class Match:
    """How well samples match their captions."""

    score: float  # mean cosine similarity of a sample and its caption
    shuffled: float  # the same with another sample's caption: the score of images that ignore their captions
    recall: float  # fraction of samples whose own caption is the most similar of all candidates


class Judge:
    """Scores images against captions with a small CLIP; insensitive to blur."""

    def __init__(self, device: str | torch.device = "cpu"):
        hide_loading_bars()
        self.clip = CLIPModel.from_pretrained(TINY / "judge", dtype=torch.float32).eval()
        nn.Module.to(self.clip, device)
        self.tokenizer = CLIPTokenizer.from_pretrained(TINY / "pipeline" / "tokenizer")

    def score(self, images: Tensor | Sequence[Image.Image], captions: Sequence[str]) -> Tensor:
        """Cosine similarity of each image, [B, 3, H, W] in [-1, 1] or PIL, and its caption, [B]."""
        return (self.image_features(images) * self.text_features(captions)).sum(-1)

    def match(
        self, images: Tensor | Sequence[Image.Image], captions: Sequence[str], candidates: Sequence[str] = ()
    ) -> Match:
        """candidates: captions that compete with a sample's own for recall; by default those of the other samples."""
        distinct = list(dict.fromkeys(captions))
        # A fixed permutation that moves every caption: each takes its neighbour's in a shuffled list.
        order = [distinct[i] for i in np.random.default_rng(0).permutation(len(distinct))]
        other = dict(zip(order, [*order[1:], order[0]], strict=True))
        features = self.image_features(images)
        own = (features * self.text_features(captions)).sum(-1)
        shuffled = (features * self.text_features([other[caption] for caption in captions])).sum(-1)
        best = (features @ self.text_features(sorted({*candidates, *captions})).T).max(dim=1).values
        return Match(own.mean().item(), shuffled.mean().item(), (own >= best - 1e-5).float().mean().item())

    @torch.no_grad()
    def image_features(self, images: Tensor | Sequence[Image.Image]) -> Tensor:
        """Unit vectors, [B, D]."""
        if not isinstance(images, Tensor):
            stacked = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))
            images = stacked.permute(0, 3, 1, 2).float() / 127.5 - 1
        size = (RESOLUTION, RESOLUTION)
        images = images.to(self.clip.device, torch.float32)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        pooled = self.clip.vision_model(pixel_values=images).pooler_output
        return F.normalize(self.clip.visual_projection(pooled), dim=-1)

    @torch.no_grad()
    def text_features(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors, [B, D]."""
        tokens = self.tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids
        pooled = self.clip.text_model(input_ids=tokens.to(self.clip.device)).pooler_output
        return F.normalize(self.clip.text_projection(pooled), dim=-1)
