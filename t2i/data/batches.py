"""The examples that training sees, and every random choice about them."""

from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from t2i.data.latent_cache import Encoded, encode
from t2i.data.samplers import BucketOrder, Order, order
from t2i.data.splits import Split
from t2i.diffusion.timesteps import Distribution
from t2i.rng import generators


@dataclass
class Batch:
    """One micro-batch with all its random choices made. B: examples; latents are [B, C, h, w]."""

    x0: Tensor
    noise: Tensor  # what the target is made of
    input_noise: Tensor  # what the input is made of: the same, unless input_perturbation is on
    t: Tensor  # [B], integers
    text: dict[str, Tensor]  # what the model's `embed` returns for the B captions, and the views' `time_ids`, [B, 6]
    items: Tensor  # [B]: which images these are; of a stream [B, 2]: shard, and place in it

    def to(self, device: torch.device) -> "Batch":
        def move(value):
            return {k: v.to(device) for k, v in value.items()} if isinstance(value, dict) else value.to(device)

        return Batch(**{field.name: move(getattr(self, field.name)) for field in fields(self)})


@dataclass(frozen=True)
class Draws:
    """What is drawn for each example, by its position in the endless order."""

    num_timesteps: int
    timesteps: Distribution
    caption_dropout: float
    noise_offset: float
    input_perturbation: float
    seed: int

    def draw(self, positions: list[int], stream: str, kind: str = "random", **size) -> np.ndarray:
        """One draw for each position, [B, ...]; kind is a method of numpy's generator."""
        return np.stack([getattr(random, kind)(**size) for random in generators(self.seed, stream, positions)])

    def dropped(self, positions: list[int]) -> np.ndarray:
        """Whose captions are dropped, [B]."""
        return self.draw(positions, "caption") < self.caption_dropout

    def batch(
        self, positions: list[int], items: list, mean: np.ndarray, std: np.ndarray, text: dict[str, Tensor]
    ) -> Batch:
        """The batch at some positions, of latents with the given mean and standard deviation, [B, C, h, w]."""
        u = self.timesteps.spread(self.draw(positions, "timestep"), positions)
        normal = partial(self.draw, positions, kind="standard_normal", size=mean.shape[1:], dtype=np.float32)
        noise = normal("noise")
        if self.noise_offset:  # one number per channel (Guttenberg 2023, "Diffusion with offset noise")
            noise += self.noise_offset * normal("noise_offset", size=(mean.shape[1], 1, 1))
        input_noise = noise
        if self.input_perturbation:
            input_noise = noise + self.input_perturbation * normal("input_perturbation")
        return Batch(
            x0=torch.from_numpy(mean + std * normal("posterior")),
            noise=torch.from_numpy(noise),
            input_noise=torch.from_numpy(input_noise),
            t=torch.from_numpy(self.timesteps.quantile(u, self.num_timesteps)),
            text=text,
            items=torch.tensor(items),
        )


@dataclass
class Examples(torch.utils.data.Dataset):
    """Training examples by their position in the endless order; the batch at some positions is always the same."""

    encoded: Encoded
    order: Order | BucketOrder
    draws: Draws

    @property
    def fingerprint(self) -> str:
        return self.encoded.fingerprint

    def __getitems__(self, positions: list[int]) -> Batch:
        items = [self.order[position] for position in positions]
        views = self.draws.draw(positions, "image")
        mean, std = self.encoded.moments(items, views)
        kept = [None if drop else item for item, drop in zip(items, self.draws.dropped(positions), strict=True)]
        text = self.encoded.text(kept, self.draws.draw(positions, "caption_choice"))
        text["time_ids"] = self.encoded.framing(items, views)
        return self.draws.batch(positions, items, mean, std, text)

    def finish(self, batch: Batch) -> Batch:
        """What is left to do in the process of the loop: nothing."""
        return batch


@dataclass(frozen=True)
class CachedSplit(Split):
    """A split that is encoded into the cache before training."""

    def examples(self, model: Any, cache_dir: str, batch_size: int, draws: Draws) -> Examples:
        encoded = encode(self, model, cache_dir)
        return Examples(encoded, order(self.weights, encoded.sizes(), batch_size, draws.seed), draws)
