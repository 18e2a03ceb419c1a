"""What computes the optimizer steps and the predictions of a run: the seam for other libraries than PyTorch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from t2i.optim.precision import Precision

if TYPE_CHECKING:
    from t2i.models.model import Model


class Backend(Protocol):
    """A library that trains. Data, draws, encoders, validation, samples and files are the same with each."""

    in_jax: bool  # whether PyTorch's networks are only read and written

    def precision(self, dtype: str, weights: str) -> Precision:
        """Which number formats these settings mean here; ConfigError if they can't run."""
        ...

    def check(self, settings: Mapping[str, Any]) -> None:
        """ConfigError for settings that are not supported, by their names in the configuration."""
        ...

    def check_model(self, model: "Model") -> None:
        """ConfigError for a network that is not supported."""
        ...
