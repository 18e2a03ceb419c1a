"""The meter of a run in JAX."""

from typing import Any, NamedTuple

import jax
from jax import Array
from torch import Tensor

from t2i.backends.jax.devices import own_examples, to_torch
from t2i.training.meters import UNCHECKED, Meter


class OnDevices(NamedTuple):
    """What is counted of an optimizer step, where the devices keep it."""

    step: int
    examples: list[tuple[Array, Array, Tensor, Tensor]]  # of each micro-batch, as `Meter.examples` takes them
    grad_norm: Array


class MeterInJax(Meter):
    """Leaves losses and norms on the devices until it is asked, so that no step has to wait for the one before.

    The sums are made on the host, in float64, which TPUs don't have.
    """

    def __init__(self, *settings: Any):
        super().__init__(*settings)
        self.waiting: list[OnDevices] = []
        self.of_step: list[tuple[Array, Array, Tensor, Tensor]] = []

    def examples(self, losses: Any, unweighted: Any, t: Tensor, items: Tensor) -> None:
        self.of_step.append((losses, unweighted, t, items))

    def step(self, step: int, grad_norm: Any, loss_scale: Tensor | None = None) -> None:
        self.waiting.append(OnDevices(step, self.of_step, grad_norm))
        self.of_step = []
        self._tick()
        if len(self.waiting) >= UNCHECKED:
            self.check()

    def check(self) -> None:
        waiting, self.waiting = self.waiting, []
        if waiting:
            arrays = [waiting[-1].grad_norm, *(each for taken in waiting for row in taken.examples for each in row[:2])]
            self._awaited(lambda: jax.block_until_ready(arrays))
        for taken in waiting:
            for losses, squares, t, items in taken.examples:
                super().examples(own_examples(losses), own_examples(squares), t, items)
            self._add(taken.step, to_torch(taken.grad_norm), None)
        super().check()
