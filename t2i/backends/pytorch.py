"""PyTorch, which everything else is measured against."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from t2i.backends.backend import Backend
from t2i.optim.precision import Precision, resolve_precision

if TYPE_CHECKING:
    from t2i.models.model import Model


class PyTorch(Backend):
    """Supports every setting."""

    in_jax = False

    def precision(self, dtype: str, weights: str) -> Precision:
        return resolve_precision(dtype, weights)

    def check(self, settings: Mapping[str, Any]) -> None:
        pass

    def check_model(self, model: "Model") -> None:
        pass
