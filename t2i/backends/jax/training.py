"""Training in JAX: what takes the place of PyTorch's network, weights, optimizer and average, and the step."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import torch
from torch import Tensor

from t2i.backends.backend import Parts, Training
from t2i.backends.jax.devices import Devices, keep_compiled
from t2i.backends.jax.meter import MeterInJax
from t2i.backends.jax.network import Network
from t2i.backends.jax.networks import network_of
from t2i.backends.jax.optimizers import optimizer_of
from t2i.backends.jax.state import State
from t2i.backends.jax.step import Compiled
from t2i.backends.jax.torch_side import AverageInJax, Forward, OptimizerInJax, WeightsInJax
from t2i.data.batches import Batch
from t2i.diffusion.losses import Weighting
from t2i.diffusion.process import Diffusion, Noised
from t2i.diffusion.residuals import Huber
from t2i.models.converted import users_cache
from t2i.models.low_rank import lora_layers
from t2i.training.step import Counted, Optimization, OptimizerStep, Outcome

DTYPES = {"fp32": jnp.float32, "bf16": jnp.bfloat16}  # precision.dtype -> JAX's


@dataclass(frozen=True, kw_only=True)
class JaxStep(OptimizerStep):
    """Noise and weightings come from PyTorch on the host; all else happens on the devices."""

    state: State
    network: Network
    diffusion: Diffusion
    loss: Weighting
    optimizer: torch.optim.Optimizer  # has the learning rate
    ema: AverageInJax

    def __call__(self, batches: Iterator[Batch], accumulation: int) -> Outcome:
        taken = list[tuple[Batch, Noised]]()

        def inputs() -> Iterator[dict[str, Tensor]]:  # the host makes one while the devices compute with the last
            for _ in range(accumulation):
                batch = next(batches)
                taken.append((batch, self.diffusion.add_noise(batch.x0, batch.noise, batch.t, batch.input_noise)))
                yield self._inputs(*taken[-1])

        counted, grad_norm = self.state.take_step(inputs(), self.optimizer.param_groups[0]["lr"], self.ema.decays())
        self.ema.update()
        self.optimizer.step()  # without gradients it changes nothing; its schedule wants it to be called
        pairs = zip(counted, taken, strict=True)
        examples = [Counted(losses, squares, noised.t, batch.items) for (losses, squares), (batch, noised) in pairs]
        return Outcome(examples, grad_norm)

    def _inputs(self, batch: Batch, noised: Noised) -> dict[str, Tensor]:
        """See `Compiled.losses`."""
        scale = self.loss.scale(noised.snr, noised.x0_scale)
        inputs = {"x": noised.x, "time": noised.time, "target": noised.target, "scale": scale}
        if isinstance(error := self.loss.error, Huber):
            inputs["c"] = error.threshold(noised)
        if batch.weight is not None:
            inputs["m"] = batch.weight
        return inputs | {name: batch.text[name] for name in self.network.inputs}


def train_in_jax(parts: Parts, sliced: bool) -> Training:
    """Move the model's denoiser to JAX's devices; its predictions are made there from now on.

    Its weights in PyTorch become a copy. sliced: whether each device holds a part of the weights only.
    """
    keep_compiled(users_cache() / "jax")  # programs for the processor: in nobody else's cache
    denoiser: Any = parts.model.denoiser
    own, optimizer, loss = parts.own, parts.optimizer, parts.loss
    scales = {name: float(layer.scaling["default"]) for name, layer in lora_layers(denoiser).items()}
    network = network_of(denoiser, scales, parts.recomputed)
    compiled = Compiled(
        network=network,
        devices=Devices(sliced),
        batch_size=parts.batch_size,
        max_grad_norm=parts.max_grad_norm,
        dtype=DTYPES[parts.precision.dtype],
        error=type(loss.error).__name__,
    )
    frozen = {name: weight for name, weight in denoiser.named_parameters() if name not in own.parameters}
    frozen |= dict(denoiser.named_buffers())
    state = State(compiled, lambda: optimizer_of(optimizer.param_groups[0], type(optimizer)), own.weights, frozen)
    denoiser.forward = Forward(denoiser, state)
    trained, ema = WeightsInJax(own, state), AverageInJax(parts.ema, state)
    ema.track(trained, optimizer)
    optimization = Optimization(
        trained=trained,
        optimizer=OptimizerInJax(optimizer, [*own.weights], state),
        lr_scheduler=parts.lr_scheduler,
        ema=ema,
        max_grad_norm=parts.max_grad_norm,
    )
    step = JaxStep(state=state, network=network, diffusion=parts.diffusion, loss=loss, optimizer=optimizer, ema=ema)
    meter = MeterInJax(parts.batch_size, parts.max_grad_norm, len(parts.diffusion), parts.max_bad_steps)
    return Training(optimization, step, meter)
