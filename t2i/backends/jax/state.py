"""What a run keeps on its devices: weights, moments, averages; and the functions that it has compiled."""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from torch import Tensor

from t2i.backends.jax.devices import to_numpy, to_torch
from t2i.backends.jax.optimizers import Optimizer
from t2i.backends.jax.step import Compiled, Weights


class State:
    """The state of training, which only the devices hold between two steps."""

    def __init__(
        self,
        compiled: Compiled,
        optimizer: Callable[[], Optimizer],
        weights: Mapping[str, Tensor],
        frozen: Mapping[str, Tensor],
    ):
        """optimizer: called before the first step, when its settings are known: a checkpoint may bring others."""
        self.compiled, self.devices, self.optimizer = compiled, compiled.devices, optimizer
        self.frozen = self.devices.put_weights(frozen)
        self.weights = self.devices.put_weights(weights)
        self.moments = self._initial_moments()
        self.averages: list[Weights] = []
        self.step = self.devices.put(np.array(0, np.int32), self.devices.replicated)  # those with a finite gradient
        self.steps = 0  # all; tells whether the host's copies are old
        self._computing: Weights | None = None

    def _initial_moments(self) -> dict[str, dict[str, Array]]:
        initial = self.optimizer().initial
        shapes = jax.eval_shape(lambda weights: {name: initial(each) for name, each in weights.items()}, self.weights)
        places = jax.tree.map(lambda each: self.devices.of_weight(each.shape), shapes)
        return jax.jit(
            lambda: jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), shapes), out_shardings=places
        )()

    def add_averages(self, averages: Sequence[Mapping[str, Tensor]]) -> None:
        self.averages = [self.devices.put_weights(each) for each in averages]

    def take_step(
        self, batches: Iterable[Mapping[str, Tensor]], lr: float, decays: Sequence[float]
    ) -> tuple[list[tuple[Array, Array]], Array]:
        """One optimizer step, for which nothing waits. batches: see `Compiled.losses`; of each process its own.

        Returns for each micro-batch the losses and squared errors of its examples, and the norm of the gradients.
        """
        total, counted = self._zeros(), []
        for batch in batches:
            total, each = self._gradients(self.weights, self.frozen, total, self.devices.put_examples(batch))
            counted.append(each)
        state = {"weights": self.weights, "moments": self.moments, "averages": self.averages, "step": self.step}
        state, norm = self._update(state, total, np.float32(lr), np.asarray(decays, np.float32))
        self.weights, self.moments = state["weights"], state["moments"]
        self.averages, self.step = state["averages"], state["step"]
        self.steps += 1
        return counted, norm

    def predict(self, x: Tensor, time: Tensor, text: Mapping[str, Tensor]) -> Tensor:
        """The prediction, [B, C, h, w], on this process's devices.

        All processes must call it equally often if weights are sliced. Batches are filled up to powers of two, so
        that few shapes are compiled, and to a multiple of the devices.
        """
        own, count = self.devices.own, len(x)
        padded = max(len(own), 1 << (count - 1).bit_length())
        padded += -padded % len(own)
        rows = np.minimum(np.arange(padded), count - 1)
        inputs = own.put_examples({"x": x[rows], "time": time[rows], **{name: text[name][rows] for name in text}})
        weights = self.devices.on_own(self.weights) if self._computing is None else self._computing
        frozen = self.devices.on_own(self.frozen)
        return to_torch(self._predict(weights, frozen, inputs.pop("x"), inputs.pop("time"), inputs))[:count]

    @contextmanager
    def computing_with(self, weights: Mapping[str, Tensor]) -> Generator[None]:
        """Within, predictions are made with these weights."""
        before = self._computing
        self._computing = self.devices.own.put_weights(weights)
        try:
            yield
        finally:
            self._computing = before

    def replace_moments(self, moments: Mapping[str, Mapping[str, Tensor]], step: int) -> None:
        """Go on from these moments, and from zero for weights without any.

        Raises KeyError or ValueError where they are not those of the optimizer and the weights.
        """

        def replaced(name: str, kind: str, array: Array) -> Array:
            if name not in moments:
                return jnp.zeros_like(array)
            given = to_numpy(moments[name][kind])
            if given.shape != array.shape:
                raise ValueError(f"{kind} of {name} is {given.shape} and not {array.shape}")
            return self.devices.put(given, array.sharding)

        self.moments = {
            name: {kind: replaced(name, kind, array) for kind, array in kinds.items()}
            for name, kinds in self.moments.items()
        }
        self.step = self.devices.put(np.array(step, np.int32), self.devices.replicated)

    @cached_property
    def _zeros(self) -> Any:
        shapes = {name: each.shape for name, each in self.weights.items()}
        return jax.jit(
            lambda: {name: jnp.zeros(shape, jnp.float32) for name, shape in shapes.items()},
            out_shardings={name: self.devices.of_weight(shape) for name, shape in shapes.items()},
        )

    @cached_property
    def _gradients(self) -> Any:
        places = {name: each.sharding for name, each in self.weights.items()}
        return jax.jit(self.compiled.gradients, donate_argnums=2, out_shardings=(places, self.devices.by_example))

    @cached_property
    def _update(self) -> Any:
        state = {"weights": self.weights, "moments": self.moments, "averages": self.averages, "step": self.step}
        places = jax.tree.map(lambda each: each.sharding, state)
        update = partial(self.compiled.update, self.optimizer())
        return jax.jit(update, donate_argnums=0, out_shardings=(places, self.devices.replicated))

    @cached_property
    def _predict(self) -> Any:
        own = self.devices.own
        return jax.jit(replace(self.compiled, devices=own).predict, out_shardings=own.replicated)
