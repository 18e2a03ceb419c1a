"""PyTorch's optimizers as functions, with the state that they keep, under their names: checkpoints hold it for both."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax.numpy as jnp
import torch
from jax import Array

from t2i.config import ConfigError

FREE = ("foreach", "fused", "capturable", "differentiable")  # settings that don't change what is computed
FLOAT32_EPS = float(jnp.finfo(jnp.float32).eps)
State = dict[str, Array]  # of one weight


class Optimizer(Protocol):
    """The update of one weight."""

    def initial(self, weight: Array) -> State:
        """The state before the first step."""
        ...

    def __call__(self, weight: Array, gradient: Array, state: State, step: Array, lr: Array) -> tuple[Array, State]:
        """The weight and the state after a step. step: its number, from 1 on."""
        ...


@dataclass(frozen=True)
class AdamW(Optimizer):
    """As torch.optim.AdamW (Loshchilov & Hutter 2019)."""

    betas: tuple[float, float]
    eps: float
    weight_decay: float

    def initial(self, weight: Array) -> State:
        return {"exp_avg": jnp.zeros_like(weight), "exp_avg_sq": jnp.zeros_like(weight)}

    def __call__(self, weight: Array, gradient: Array, state: State, step: Array, lr: Array) -> tuple[Array, State]:
        beta1, beta2 = self.betas
        mean = state["exp_avg"] + (1 - beta1) * (gradient - state["exp_avg"])
        square = beta2 * state["exp_avg_sq"] + (1 - beta2) * jnp.square(gradient)
        unbiased = jnp.sqrt(square) / jnp.sqrt(_one_minus_power(beta2, step)) + self.eps
        decayed = weight * (1 - lr * self.weight_decay)
        new = decayed - lr / _one_minus_power(beta1, step) * mean / unbiased
        return new, {"exp_avg": mean, "exp_avg_sq": square}


@dataclass(frozen=True)
class Adafactor(Optimizer):
    """As torch.optim.Adafactor (Shazeer & Stern 2018): of the second moment, the means of rows and columns."""

    beta2_decay: float
    eps: tuple[float | None, float]
    d: float
    weight_decay: float

    def initial(self, weight: Array) -> State:
        if weight.ndim < 2:
            return {"variance": jnp.zeros_like(weight)}
        return {
            "row_var": jnp.zeros((*weight.shape[:-1], 1), weight.dtype),
            "col_var": jnp.zeros((*weight.shape[:-2], 1, weight.shape[-1]), weight.dtype),
        }

    def __call__(self, weight: Array, gradient: Array, state: State, step: Array, lr: Array) -> tuple[Array, State]:
        eps1, eps2 = self.eps
        eps1 = FLOAT32_EPS if eps1 is None else eps1
        count = step.astype(jnp.float32)
        share = count**self.beta2_decay
        rate = jnp.maximum(eps2, _root_mean_square(weight)) * jnp.minimum(lr, count**-0.5)
        squares = jnp.square(gradient)
        if weight.ndim < 2:
            state = {"variance": state["variance"] + share * (squares - state["variance"])}
            variance = state["variance"]
        else:
            row = state["row_var"] + share * (squares.mean(-1, keepdims=True) - state["row_var"])
            column = state["col_var"] + share * (squares.mean(-2, keepdims=True) - state["col_var"])
            variance = row * column / jnp.maximum(row.mean(-2, keepdims=True), eps1)
            state = {"row_var": row, "col_var": column}
        update = gradient / jnp.sqrt(jnp.maximum(variance, eps1**2))
        clipped = update / jnp.maximum(1.0, _root_mean_square(update) / self.d)
        return weight * (1 - lr * self.weight_decay) - rate * clipped, state


def _one_minus_power(beta: float, step: Array) -> Array:
    """1 − beta^step, which float32 would lose to cancellation."""
    return -jnp.expm1(step.astype(jnp.float32) * jnp.log1p(jnp.float32(beta - 1)))


def _root_mean_square(x: Array) -> Array:
    return jnp.sqrt(jnp.square(x).mean())


KNOWN = {torch.optim.AdamW: AdamW, torch.optim.Adafactor: Adafactor}


def refuse_unknown(kind: Any) -> None:
    """ConfigError for an optimizer that is not among those above."""
    if kind not in KNOWN:
        raise ConfigError(
            f"backend=jax has no {getattr(kind, '__name__', kind)}; use optimizer=adamw or adafactor, or backend=torch"
        )


def optimizer_of(settings: Mapping[str, Any], kind: type) -> Optimizer:
    """The function for a class of torch.optim and its settings; ConfigError for what is not known."""
    refuse_unknown(kind)
    known = KNOWN[kind]
    used = [*known.__dataclass_fields__]
    defaults = {name: each.default for name, each in inspect.signature(kind.__init__).parameters.items()}
    for name, value in settings.items():
        if name not in (*used, *FREE, "lr", "params") and defaults.get(name, value) != value:
            raise ConfigError(f"optimizer.{name}={value} is not supported by backend=jax; leave it out")
    return known(**{name: _hashable(settings[name]) for name in used})


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
