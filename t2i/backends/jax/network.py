"""What a network in JAX has to offer."""

from collections.abc import Mapping
from typing import Protocol

from jax import Array

from t2i.backends.jax.attention import Attend, by_xla


class Network(Protocol):
    """A denoiser as a function of its weights."""

    @property
    def arguments(self) -> Mapping[str, str]:
        """What the arguments of Diffusers' network are called here, where that differs."""
        ...

    @property
    def inputs(self) -> tuple[str, ...]:
        """What it takes of an embedded caption, by the names of the model's `embed`."""
        ...

    def __call__(
        self,
        weights: Mapping[str, Array],
        x: Array,
        time: Array,
        text: Mapping[str, Array],
        attend: Attend = by_xla,
    ) -> Array:
        """The prediction in float32, [B, C, h, w]. x: [B, C, h, w], time: [B]."""
        ...
