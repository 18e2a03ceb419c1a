"""Batches of training examples, and every random choice about them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from t2i.diffusion.timesteps import Distribution
from t2i.hardware.uploads import upload
from t2i.models.tokens import upload_text
from t2i.rng import generators


@dataclass
class Batch:
    """One micro-batch with all its random choices made. B: examples; latents are [B, C, h, w]."""

    x0: Tensor
    noise: Tensor  # the noise in the target
    input_noise: Tensor | None  # the noise in the input, with input_perturbation; None: the same
    t: Tensor  # [B], integers
    text: dict[str, Tensor]  # what the model's `embed` returns for the B captions, and `time_ids` of the views, [B, 6]
    items: Tensor  # [B]: the indices of the images; in a stream [B, 2]: shard, and index in the shard
    weight: Tensor | None = None  # of the errors in the loss, [B, 1, h, w] or [B, 1, 1, 1]; None: all count alike

    def to(self, device: torch.device) -> "Batch":
        """The batch on the device, but for `items`, which only the host looks at."""
        return Batch(
            x0=upload(self.x0, device),
            noise=upload(self.noise, device),
            input_noise=None if self.input_noise is None else upload(self.input_noise, device),
            t=upload(self.t, device),
            text=upload_text(self.text, device),
            items=self.items,
            weight=None if self.weight is None else upload(self.weight, device),
        )


@dataclass(frozen=True)
class Draws:
    """The random choices about an example, each a function of the seed and the example's position in the order."""

    num_timesteps: int
    timesteps: Distribution
    caption_dropout: float
    noise_offset: float
    input_perturbation: float
    seed: int

    def draw(self, positions: Sequence[int], stream: str, kind: str = "random", **size: Any) -> np.ndarray:
        """One draw for each position, [B, ...]; kind: the method of numpy's generator, called with `size`."""
        return np.stack([getattr(random, kind)(**size) for random in generators(self.seed, stream, positions)])

    def dropped(self, positions: Sequence[int]) -> np.ndarray:
        """Whether the caption of each example is dropped, [B]."""
        return self.draw(positions, "caption") < self.caption_dropout

    def batch(
        self, positions: Sequence[int], items: Sequence, mean: Tensor, std: Tensor, text: dict[str, Tensor]
    ) -> Batch:
        """The batch at the positions, of latents with the given mean and standard deviation, [B, C, h, w]."""
        u = self.timesteps.spread(self.draw(positions, "timestep"), positions)
        normal = partial(self.draw, positions, kind="standard_normal", size=mean.shape[1:], dtype=np.float32)
        noise = normal("noise")
        if self.noise_offset:  # one number per channel (Guttenberg 2023, "Diffusion with offset noise")
            noise += self.noise_offset * normal("noise_offset", size=(mean.shape[1], 1, 1))
        input_noise = None
        if self.input_perturbation:
            input_noise = torch.from_numpy(noise + self.input_perturbation * normal("input_perturbation"))
        return Batch(
            x0=mean + std * upload(torch.from_numpy(normal("posterior")), mean.device),
            noise=torch.from_numpy(noise),
            input_noise=input_noise,
            t=torch.from_numpy(self.timesteps.quantile(u, self.num_timesteps)),
            text=text,
            items=torch.tensor(items),
        )
