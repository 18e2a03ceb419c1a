"""Averages of the weights whose length is chosen after training (Karras et al. 2024, arXiv 2312.02696, section 3).

A power-function average weighs the weights of step τ by τ^γ, so that its width is a fraction of the training so far,
sigma_rel: 0.1 averages over about the last quarter of the steps. Of two such averages, snapshots are stored while the
run trains. An average of any other length is then the linear combination of the snapshots whose profile (the weights of
the steps, which are known) comes closest in least squares to that of the wanted average.
"""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from t2i.config import ConfigError
from t2i.optim.ema import WeightAverage, copies, move, refuse_schedule_free
from t2i.optim.trained_weights import TrainedWeights, copy_state

LONGEST = 1 / np.sqrt(12)  # sigma_rel of the plain mean of all steps
DTYPES = {"float32": torch.float32, "float16": torch.float16}


def exponent(sigma_rel: float) -> float:
    """γ of the average of this relative width: the largest root of Equation 126, for 0 < sigma_rel < 12^(-1/2)."""
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def check_length(name: str, length: float) -> None:
    if not 0 < length < LONGEST:
        raise ConfigError(
            f"{name} {length:g} is not the relative width of an average; choose from 0.01 to 0.28 (0.289 would be the "
            "mean of all steps)"
        )


class PostHoc(WeightAverage):
    """Two power-function averages, θ̂ ← β·θ̂ + (1 − β)·θ with β = (1 − 1/t)^(γ+1) after step t (Equation 127)."""

    def __init__(
        self,
        lengths: Sequence[float],
        exported: float,
        snapshots: int,
        dtype: str,
        decay: float = 0.0,
        warmup: bool = False,
    ):
        """decay, warmup: settings of another average, which models bring; they have no effect."""
        if len(set(lengths)) != 2:
            raise ConfigError(f"ema.lengths={list(lengths)} must be two different widths; [0.05, 0.1] are the paper's")
        for length in lengths:
            check_length("ema.lengths:", length)
        if exported not in lengths:
            raise ConfigError(f"ema.exported={exported} must be one of ema.lengths={list(lengths)}")
        if snapshots < 4:
            raise ConfigError(f"ema.snapshots={snapshots} can't be combined to other lengths; use 16 to 64")
        if dtype not in DTYPES:
            raise ConfigError(f"ema.dtype={dtype} is not known; choose from {', '.join(DTYPES)}")
        self.exponents = {length: exponent(length) for length in lengths}
        self.exported, self.snapshots, self.dtype = exported, snapshots, DTYPES[dtype]
        self.updates = 0

    def track(self, trained: TrainedWeights, optimizer: torch.optim.Optimizer) -> None:
        refuse_schedule_free(optimizer)
        self.trained = trained
        self.averages = {length: copies(trained) for length in self.exponents}

    def next_decays(self) -> list[float]:
        """β of each average in the next update."""
        return [(1 - 1 / (self.updates + 1)) ** (gamma + 1) for gamma in self.exponents.values()]

    @torch.no_grad()
    def update(self) -> None:
        decays = self.next_decays()
        self.updates += 1
        for average, decay in zip(self.averages.values(), decays, strict=True):
            move(average, self.trained, decay, self.updates)

    def applied(self, dtype: torch.dtype | None = None) -> AbstractContextManager[None]:
        return self.trained.replaced(self.averages[self.exported], dtype)

    def variants(self) -> dict[str, AbstractContextManager[None]]:
        return {"": nullcontext(), "ema/": self.applied()}

    def state_dict(self) -> dict[str, Tensor]:
        """The exported average under the names of the weights; the other under LENGTH/NAME."""
        state = {
            name if length == self.exported else f"{length:g}/{name}": tensor
            for length, average in self.averages.items()
            for name, tensor in average.items()
        }
        return state | {"updates": torch.tensor(self.updates)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = int(state["updates"])
        copy_state({key: tensor for key, tensor in self.state_dict().items() if key != "updates"}, state)

    def snapshot_steps(self, steps: int) -> Collection[int]:
        return {round(steps * (i + 1) / self.snapshots) for i in range(self.snapshots)} - {0}

    def snapshot(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Both averages, each tensor under LENGTH/NAME."""
        return {
            key if "/" in key else f"{self.exported:g}/{key}": tensor.to(self.dtype)
            for key, tensor in state.items()
            if key != "updates"
        }


def overlap(a: tuple[Any, Any], b: tuple[Any, Any]) -> Any:
    """∫ p_a(τ) p_b(τ) dτ of two profiles p(τ) = (γ + 1) τ^γ / t^(γ+1) on [0, t], each (t, γ); broadcasts."""
    (t, gamma), (u, delta) = a, b
    first = np.minimum(t, u)
    exponents = gamma + delta + 1
    return (gamma + 1) * (delta + 1) / exponents * (first / t) ** (gamma + 1) * (first / u) ** (delta + 1) / first


def combination(steps: np.ndarray, lengths: np.ndarray, wanted: float, step: float) -> tuple[np.ndarray, float]:
    """The coefficients, [M], of M snapshots whose sum comes closest to the average of length `wanted` at `step`.

    steps, lengths: of the snapshots, [M]. Returns also the profile's relative error: the root of the mean squared
    difference between the combination's profile and the wanted one, over that of the wanted one. The coefficients add
    up to 1, which the paper does not ask for: weights that don't move are then reproduced exactly.
    """
    gammas = np.array([exponent(length) for length in lengths])
    target = (float(step), exponent(wanted))
    gram = overlap((steps[:, None].astype(float), gammas[:, None]), (steps.astype(float), gammas))
    right = overlap((steps.astype(float), gammas), target)
    bordered = np.block([[gram * step, np.ones((len(steps), 1))], [np.ones((1, len(steps))), np.zeros((1, 1))]])
    solution = np.linalg.lstsq(bordered, np.append(right * step, 1.0), rcond=1e-13)[0][:-1]
    norm = overlap(target, target)
    residual = norm - 2 * right @ solution + solution @ gram @ solution
    return solution, float(np.sqrt(max(residual, 0.0) / norm))
