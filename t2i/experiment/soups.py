"""Averages of the weights of several runs (Wortsman et al. 2022, arXiv 2203.05482, "Model soups").

A soup is chosen on the even images of the battery and reported on the odd ones, so that its error is not optimistic
because it was chosen by it.

The adapters of LoRA are not averaged factor by factor: the mean of B and that of A do not make the mean of B A. The
mean of the products is an adapter itself, of the sum of the ranks: Σ w B A = [w₁B₁ w₂B₂ …] [A₁; A₂; …].
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from t2i.config import ConfigError
from t2i.models.adapter_kinds import KINDS

Weights = Mapping[str, Tensor]
CHOICE, REPORT = slice(0, None, 2), slice(1, None, 2)  # of the battery's images


def refuse_other_shapes(ingredients: Mapping[str, Weights], any_rank: bool) -> None:
    """ConfigError if the runs have not trained the same weights. any_rank: the factors of LoRA may differ in rank."""
    (first, expected), *others = ingredients.items()
    for name, weights in others:
        differing = expected.keys() ^ weights.keys()
        if not differing and not any_rank:
            differing = {key for key in expected if expected[key].shape != weights[key].shape}
        if differing:
            raise ConfigError(
                f"{name} has trained other weights than {first}, such as {min(differing)}; only runs of one model and "
                "one adapter can be averaged"
            )


def refuse_factors(weights: Weights) -> None:
    """ConfigError for adapters of other kinds than LoRA: the mean of their factors is no mean of what these make."""
    kind = next((kind for kind in KINDS for name in weights if name.rpartition(".")[0].endswith(kind.weights)), None)
    if kind is not None:
        raise ConfigError(f"adapter={kind.name}: only runs of adapter=lora and none can be averaged")


def mean(ingredients: Sequence[Weights]) -> dict[str, Tensor]:
    """The plain mean of each weight, in float32."""
    return {name: torch.stack([weights[name].float() for weights in ingredients]).mean(0) for name in ingredients[0]}


def mean_product(ingredients: Sequence[Weights], rank: int) -> dict[str, Tensor]:
    """Factors of this rank whose product is the mean of the ingredients' products; missing ranks are zeros."""
    joined = {}
    for name in ingredients[0]:
        axis, scale = (0, 1.0) if ".lora_A." in name else (1, 1 / len(ingredients))
        factor = torch.cat([scale * weights[name].float() for weights in ingredients], dim=axis)
        padding = list(factor.shape)
        padding[axis] = rank - factor.shape[axis]
        joined[name] = torch.cat([factor, factor.new_zeros(padding)], dim=axis)
    return joined


def rank_of(weights: Weights) -> int:
    """The rank of adapters; ConfigError for DoRA, whose lengths are not linear in the weights."""
    if any("lora_magnitude" in name for name in weights):
        raise ConfigError("adapter=dora: the average of its products is no adapter; only lora and none can be averaged")
    return next(weight.shape[0] for name, weight in weights.items() if ".lora_A." in name)


def greedy(
    errors: Sequence[np.ndarray],
    taste: Callable[[list[int]], np.ndarray],
    loss: Callable[[np.ndarray], float],
) -> list[int]:
    """The greedy soup (Recipe 1): from the best run on, each that does not make the soup worse, by the even images.

    errors: of each run, [N, K]. taste: those of the soup of some runs. loss: of errors.
    """
    order = sorted(range(len(errors)), key=lambda run: loss(errors[run][CHOICE]))
    chosen, best = [order[0]], loss(errors[order[0]][CHOICE])
    for run in order[1:]:
        if (tried := loss(taste([*chosen, run])[CHOICE])) <= best:
            chosen, best = [*chosen, run], tried
    return chosen
