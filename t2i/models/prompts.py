"""Captions that were embedded for sampling, so that a pipeline needs no text encoders to draw them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class EmbeddedPrompts:
    """N embedded captions, in the form that `Model.embed` gives them."""

    text: Mapping[str, Tensor]  # [N, ...]
    empty: Mapping[str, Tensor]  # [1, ...]: the empty caption, for guidance
    arguments: Callable[[dict[str, Tensor]], dict[str, Any]]  # embedded captions as arguments of the stock pipeline
    instead: Mapping[str, None]  # arguments that must not have their defaults

    def __len__(self) -> int:
        return len(next(iter(self.text.values()), ()))

    def request(self, places: Sequence[int], device: Any) -> dict[str, Any]:
        """The arguments for the captions at these places; those for guidance have the prefix that Diffusers uses."""
        chosen = self.arguments({name: tensor[list(places)].to(device) for name, tensor in self.text.items()})
        alike = {name: tensor.expand(len(places), *tensor.shape[1:]) for name, tensor in self.empty.items()}
        empty = self.arguments({name: tensor.to(device) for name, tensor in alike.items()})
        return {**self.instead, **chosen, **{f"negative_{name}": value for name, value in empty.items()}}
