"""One optimizer step as two compiled functions: the gradients of a micro-batch, and the update of all weights."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from t2i.backends.jax.attention import attention_on
from t2i.backends.jax.devices import Devices
from t2i.backends.jax.network import Network
from t2i.backends.jax.optimizers import Optimizer

Weights = dict[str, Array]
# The error of a residual r, and of the threshold c of its example, as in t2i.diffusion.residuals.
ERRORS: dict[str, Callable[[Array, Array], Array]] = {
    "Squared": lambda r, c: jnp.square(r),
    "Huber": lambda r, c: 2 * jnp.square(r) / (1 + jnp.sqrt(1 + jnp.square(r / c))),
    "SmoothL1": lambda r, c: 2 * jnp.square(r) / (1 + jnp.sqrt(1 + jnp.square(r / c))) / c,
}


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """The functions that a run compiles, once for each shape of its batches."""

    network: Network
    devices: Devices
    batch_size: int
    max_grad_norm: float
    dtype: Any  # of products
    error: str  # of ERRORS
    traced: Counter[str] = field(default_factory=Counter)  # how often each function was traced, so compiled

    def predict(self, weights: Weights, frozen: Weights, x: Array, time: Array, text: Mapping[str, Array]) -> Array:
        """The network's prediction. frozen: the weights that are not trained."""
        exact = "highest" if self.dtype == jnp.float32 else None  # TPUs and some GPUs multiply float32 in fewer bits
        with jax.default_matmul_precision(exact):
            return self.network(self._cast({**frozen, **weights}), x, time, text, attention_on(self.devices))

    def losses(
        self, weights: Weights, frozen: Weights, batch: Mapping[str, Array]
    ) -> tuple[Array, tuple[Array, Array]]:
        """The share of a micro-batch in the mean loss; of its examples, the weighted losses and squared errors, [B].

        batch: x, time, target and scale, what the error of the prediction is multiplied with, [B]; besides, if needed,
        c, the threshold of the error, and m, the weight of its elements, each [B, 1, ...]; and the text.
        """
        prediction = self.predict(weights, frozen, batch["x"], batch["time"], batch)
        residual = prediction - batch["target"]
        errors = ERRORS[self.error](residual, batch.get("c", jnp.ones(())))
        losses = batch["scale"] * _mean(errors * batch["m"] if "m" in batch else errors)
        return losses.sum() / self.batch_size, (losses, _mean(jnp.square(residual)))

    def gradients(
        self, weights: Weights, frozen: Weights, total: Weights, batch: Mapping[str, Array]
    ) -> tuple[Weights, tuple[Array, Array]]:
        """The sum of gradients with those of a micro-batch added; and its losses and squared errors."""
        self.traced["gradients"] += 1
        gradients, counted = jax.grad(self.losses, has_aux=True)(weights, frozen, batch)
        return jax.tree.map(jnp.add, total, gradients), counted

    def update(
        self, optimizer: Optimizer, state: dict[str, Any], gradients: Weights, lr: Array, decays: Array
    ) -> tuple[dict[str, Any], Array]:
        """Clip, step and average; returns the new state, and the norm of the gradients before they were clipped.

        Without a finite gradient, weights and moments stay as they are. decays: of each average.
        """
        self.traced["update"] += 1
        norm = jnp.sqrt(sum(jnp.square(each).sum() for each in gradients.values()))
        finite = jnp.isfinite(norm)
        factor = jnp.where(norm > self.max_grad_norm, self.max_grad_norm / (norm + 1e-6), 1.0)
        step = state["step"] + finite
        weights, moments = {}, {}
        for name, weight in state["weights"].items():
            before = weight, state["moments"][name]
            after = optimizer(weight, gradients[name] * factor, before[1], step, lr)
            weights[name], moments[name] = jax.tree.map(partial(jnp.where, finite), after, before)
        averages = [
            {name: shadow + (1 - decays[i]) * (weights[name] - shadow) for name, shadow in average.items()}
            for i, average in enumerate(state["averages"])
        ]
        return {"weights": weights, "moments": moments, "averages": averages, "step": step}, norm

    def _cast(self, weights: Weights) -> Weights:
        """Matrices and kernels in the type that they are multiplied in, complete on every device."""
        cast = {name: each.astype(self.dtype) if each.ndim > 1 else each for name, each in weights.items()}
        if not self.devices.sliced:
            return cast
        return {name: jax.lax.with_sharding_constraint(each, self.devices.replicated) for name, each in cast.items()}


def _mean(errors: Array) -> Array:
    """Over each example, [B]."""
    return errors.reshape(len(errors), -1).mean(1)
