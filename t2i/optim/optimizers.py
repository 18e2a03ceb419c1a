"""Optimizers that PyTorch and related packages lack; conf/optimizer/ names the others by their own paths."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from t2i.rng import generator

AT_ONCE = {"cpu": 2**18}  # elements updated at once; on a CPU they fit its cache
TOGETHER = 2**25  # elements of several weights that a GPU updates together; it takes 1.3 GB for them meanwhile


class StochasticAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019) for weights in bfloat16 without a float32 copy: 8 bytes per weight, not 16.

    Weights and both moments are computed in float32 and rounded stochastically: up or down, with probabilities that
    keep the mean (Zamirai et al. 2020, arXiv 2010.06192). Rounding to the nearest would lose an update of less than
    0.2 % of a weight, and with beta2 = 0.999 the second moment could grow but never fall. The direction of rounding is
    a function of `seed`, step and weight. Weights of other types are not rounded.

    A GPU updates many weights together, which share a noise. It may be told after the call that a step is not to be
    taken (`found_inf`); the number of steps counts it all the same.
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
        foreach: bool | None = None,
    ):
        """foreach: update many weights together; None does so on a GPU.

        Raises ValueError for what torch.optim.AdamW refuses, and for betas that are not two.
        """
        if len(betas := tuple(betas)) != 2:
            raise ValueError(f"betas={list(betas)} must be two numbers, such as [0.9, 0.999]")
        for beta in betas:
            if not 0 <= beta < 1:
                raise ValueError(f"betas={list(betas)} must be at least 0 and below 1")
        for name, value in {"lr": lr, "eps": eps, "weight_decay": weight_decay}.items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value} must be a number, at least 0")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.seed, self.foreach = seed, foreach

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether `found_inf` is observed, as by PyTorch's fused optimizers: on a GPU, which is not to be asked."""
        return all(weight.device.type != "cpu" for group in self.param_groups for weight in group["params"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        bad = getattr(self, "found_inf", None)  # set for a step on a GPU
        indexed = enumerate((group, weight) for group in self.param_groups for weight in group["params"])
        updates = [self._prepare(index, group, weight) for index, (group, weight) in indexed if weight.grad is not None]
        if self._together(updates):
            for bucket in _buckets(updates):
                self._update_together(bucket, bad)
        else:
            for update in updates:
                random = self._random(update, update.tensors[0].device)
                at_once = AT_ONCE.get(update.tensors[0].device.type, TOGETHER)
                for chunk in zip(*(tensor.split(at_once) for tensor in update.tensors), strict=True):
                    _update(chunk, update.step, update.group, random, bad)
        return loss

    def _together(self, updates: Sequence["Update"]) -> bool:
        on_cpu = any(update.tensors[0].device.type == "cpu" for update in updates)
        return not on_cpu if self.foreach is None else self.foreach

    def _prepare(self, index: int, group: dict, weight: Tensor) -> "Update":
        """The update of a weight in this step, with tensors whose elements lie in one order."""
        state = self.state[weight]
        if not state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
        state["step"] += 1
        for name in ("exp_avg", "exp_avg_sq"):  # of a run that went on with another channels_last
            state[name] = lying_as(weight, state[name])
        assert weight.grad is not None
        tensors = (weight, lying_as(weight, weight.grad), state["exp_avg"], state["exp_avg_sq"])
        return Update(index, state["step"], group, tuple(map(_flat, tensors)))

    def _random(self, update: "Update", device: torch.device) -> torch.Generator:
        seed = int(generator(self.seed, "rounding", update.step, update.index).integers(2**63))
        return torch.Generator(device).manual_seed(seed)

    def _update_together(self, bucket: Sequence["Update"], bad: Tensor | None) -> None:
        """Update several weights as one: a GPU launches as many kernels for all as for one of them."""
        first, pieces = bucket[0], list(zip(*(update.tensors for update in bucket), strict=True))
        joined = [torch.cat(of_weights) for of_weights in pieces]
        _update(joined, first.step, first.group, self._random(first, joined[0].device), bad)
        sizes = [update.tensors[0].numel() for update in bucket]
        for stored, value in ((pieces[at], joined[at]) for at in (0, 2, 3)):
            torch._foreach_copy_(list(stored), list(value.split(sizes)))


@dataclass(frozen=True)
class Update:
    """The update of a weight, or of a part of it."""

    index: int  # of the weight
    step: int
    group: dict
    tensors: tuple[Tensor, ...]  # weight, gradient and both moments, flat


def _buckets(updates: Iterable[Update]) -> Iterator[list[Update]]:
    """Updates that can be done together: of the same types, hyperparameters and number of steps."""
    alike: dict[Any, list[Update]] = {}
    for update in updates:
        types = tuple(tensor.dtype for tensor in update.tensors)
        key = (types, update.tensors[0].device, id(update.group), update.step)
        for part in zip(*(tensor.split(TOGETHER) for tensor in update.tensors), strict=True):
            bucket = alike.setdefault(key, [])
            if bucket and sum(other.tensors[0].numel() for other in bucket) + part[0].numel() > TOGETHER:
                yield alike.pop(key)
                bucket = alike.setdefault(key, [])
            bucket.append(replace(update, tensors=part))
    yield from alike.values()


def _update(tensors: Sequence[Tensor], step: int, group: dict, random: torch.Generator, bad: Tensor | None) -> None:
    """One step of AdamW for those of an `Update`; none if `bad`, one number on their device, is not 0."""
    w, g, m, v = tensors
    lr, (beta1, beta2) = group["lr"], group["betas"]
    rate, unbiased = lr / (1 - beta1**step), (1 - beta2**step) ** 0.5
    g = g.float()
    mean = m.float().lerp_(g, 1 - beta1)
    square = v.float().mul_(beta2).addcmul_(g, g, value=1 - beta2)
    new = w.float().mul_(1 - lr * group["weight_decay"])
    new.addcdiv_(mean, square.sqrt().div_(unbiased).add_(group["eps"]), value=-rate)
    if w.dtype == torch.bfloat16:  # a weight and its moments use neighbouring values of one noise
        noise = random_halves(len(g) + 2, random)
        for shift, value in enumerate((mean, square, new)):
            round_stochastically(value, noise[shift:][: len(g)])
    for stored, value in ((m, mean), (v, square), (w, new)):
        stored.copy_(value if bad is None else torch.where(bad.bool(), stored, value))


def lying_as(weight: Tensor, tensor: Tensor) -> Tensor:
    """The tensor with its elements in the order of the weight's in memory."""
    return tensor if tensor.stride() == weight.stride() else torch.empty_like(weight, dtype=tensor.dtype).copy_(tensor)


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
