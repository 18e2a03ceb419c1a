"""Optimizers that PyTorch and related packages lack; conf/optimizer/ names the others by their own paths."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from t2i.rng import generator

AT_ONCE = {"cpu": 2**18, "cuda": 2**26}  # elements updated at once; on a CPU they fit its cache


class StochasticAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019) for weights in bfloat16 without a float32 copy: 8 bytes per weight, not 16.

    Weights and both moments are computed in float32 and rounded stochastically: up or down, with probabilities that
    keep the mean (Zamirai et al. 2020, arXiv 2010.06192). Rounding to the nearest would lose an update of less than
    0.2 % of a weight, and with beta2 = 0.999 the second moment could grow but never fall. The direction of rounding is
    a function of `seed`, step and weight. Weights of other types are not rounded.
    """

    rounds_stochastically = True

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        seed: int,
    ):
        """Raises ValueError for what torch.optim.AdamW refuses, and for betas that are not two."""
        if len(betas := tuple(betas)) != 2:
            raise ValueError(f"betas={list(betas)} must be two numbers, such as [0.9, 0.999]")
        for beta in betas:
            if not 0 <= beta < 1:
                raise ValueError(f"betas={list(betas)} must be at least 0 and below 1")
        for name, value in {"lr": lr, "eps": eps, "weight_decay": weight_decay}.items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value} must be a number, at least 0")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.seed = seed

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        weights = ((group, weight) for group in self.param_groups for weight in group["params"])
        for index, (group, weight) in enumerate(weights):
            if weight.grad is None:
                continue
            state = self.state[weight]
            if not state:
                state |= {"step": 0, "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
            state["step"] += 1
            seed = int(generator(self.seed, "rounding", state["step"], index).integers(2**63))
            self._update(weight, weight.grad, state, group, torch.Generator(weight.device).manual_seed(seed))
        return loss

    @staticmethod
    def _update(weight: Tensor, gradient: Tensor, state: dict, group: dict, random: torch.Generator) -> None:
        lr, (beta1, beta2) = group["lr"], group["betas"]
        rate, unbiased = lr / (1 - beta1 ** state["step"]), (1 - beta2 ** state["step"]) ** 0.5
        if gradient.stride() != weight.stride():
            gradient = torch.empty_like(weight).copy_(gradient)
        tensors = (weight, gradient, state["exp_avg"], state["exp_avg_sq"])
        at_once = AT_ONCE.get(weight.device.type, weight.numel())
        for w, g, m, v in zip(*(_flat(tensor).split(at_once) for tensor in tensors), strict=True):
            g = g.float()
            mean = m.float().lerp_(g, 1 - beta1)
            square = v.float().mul_(beta2).addcmul_(g, g, value=1 - beta2)
            new = w.float().mul_(1 - lr * group["weight_decay"])
            new.addcdiv_(mean, square.sqrt().div_(unbiased).add_(group["eps"]), value=-rate)
            if weight.dtype == torch.bfloat16:  # a weight and its moments use neighbouring values of one noise
                noise = random_halves(len(g) + 2, random)
                for shift, value in enumerate((mean, square, new)):
                    round_stochastically(value, noise[shift:][: len(g)])
            for stored, value in ((m, mean), (v, square), (w, new)):
                stored.copy_(value)


def _flat(tensor: Tensor) -> Tensor:
    """A flat view of the elements in their order in memory, which channels_last changes."""
    return tensor.as_strided((tensor.numel(),), (1,))


def random_halves(count: int, random: torch.Generator) -> Tensor:
    """Integers of 16 random bits, [count] in int32."""
    drawn = torch.empty(-(-count // 4), dtype=torch.int64, device=random.device)
    drawn.random_(-(2**63), None, generator=random)
    return drawn.view(torch.int16)[:count].to(torch.int32).bitwise_and_(0xFFFF)


def round_stochastically(x: Tensor, noise: Tensor) -> Tensor:
    """Round x, float32 and flat, in place to a neighbouring bfloat16 number, so that the mean over the noise is x.

    bfloat16 is the upper half of float32: the noise, of `random_halves`, is added to the lower half, which is then
    dropped.
    """
    x.view(torch.int32).add_(noise).bitwise_and_(-(2**16))
    return x
