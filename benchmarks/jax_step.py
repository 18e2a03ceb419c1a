"""An optimizer step in JAX beside PyTorch's, in turns on one processor core; the first step compiles.

    taskset -c 0 python benchmarks/jax_step.py               # the tiny model, 32 images a step
    taskset -c 0 python benchmarks/jax_step.py --model sd15  # the size of Stable Diffusion 1.5 with fresh weights

The seconds are those of the processor, so that other work on the machine counts little.
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from t2i.backends.jax.devices import Devices, to_torch
from t2i.backends.jax.optimizers import optimizer_of
from t2i.backends.jax.state import State
from t2i.backends.jax.step import Compiled
from t2i.backends.jax.unet import unet_of
from t2i.config.model_size import BUNDLED

SIZES = {"tiny": (16, 32, 128, 77), "sd15": (64, 1, 768, 77)}  # latents on a side, images, width and tokens of captions
LR = 1e-5


def network(model: str, recompute: bool) -> UNet2DConditionModel:
    torch.manual_seed(0)
    unet = (
        UNet2DConditionModel.from_pretrained(BUNDLED["tiny"], subfolder="unet")
        if model == "tiny"
        else UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    )
    if recompute:
        unet.enable_gradient_checkpointing()
    return unet.train()


def inputs(model: str, seed: int) -> dict[str, Tensor]:
    side, images, width, tokens = SIZES[model]
    random = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(images, 4, side, side, generator=random),
        "time": torch.randint(0, 1000, (images,), generator=random),
        "target": torch.randn(images, 4, side, side, generator=random),
        "scale": torch.ones(images),
        "encoder_hidden_states": torch.randn(images, tokens, width, generator=random),
    }


def in_torch(unet: UNet2DConditionModel) -> Callable[[dict[str, Tensor]], tuple[float, float]]:
    optimizer = torch.optim.AdamW(unet.parameters(), lr=LR, fused=True)

    def step(batch: dict[str, Tensor]) -> tuple[float, float]:
        prediction = unet(batch["x"], batch["time"], batch["encoder_hidden_states"]).sample
        loss = (prediction - batch["target"]).square().mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach()), float(norm)

    return step


def in_jax(unet: UNet2DConditionModel, images: int, recompute: bool) -> tuple[State, Callable]:
    compiled = Compiled(
        network=unet_of(unet.config, {}, None if recompute else 0),
        devices=Devices(devices=jax.devices()[:1]),
        batch_size=images,
        max_grad_norm=1.0,
        dtype=jnp.float32,
        error="Squared",
    )
    group = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
    update = optimizer_of(group, torch.optim.AdamW)
    state = State(compiled, lambda: update, dict(unet.named_parameters()), {})

    def step(batch: dict[str, Tensor]) -> tuple[float, float]:
        [(losses, _)], norm = state.take_step([batch], LR, [])
        return float(losses.mean()), float(norm)

    return state, step


def timed(step: Callable, batch: dict[str, Tensor]) -> tuple[tuple[float, float], float]:
    start = time.process_time()
    return step(batch), time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=[*SIZES], default="tiny")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--recompute", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = arguments.model
    unet = network(model, arguments.recompute)
    state, jax_step = in_jax(unet, SIZES[model][1], arguments.recompute)
    torch_step = in_torch(unet)
    for number in range(arguments.steps):
        batch = inputs(model, number)
        (ours, norm), seconds = timed(jax_step, batch)
        (theirs, their_norm), their_seconds = timed(torch_step, batch)
        print(
            f"step {number}: JAX {seconds:.2f} s, PyTorch {their_seconds:.2f} s; loss {ours:.7f}, {theirs:.7f}; "
            f"norm of the gradient {norm:.6f}, {their_norm:.6f}",
            flush=True,
        )
    weights = {name: weight.detach() for name, weight in unet.named_parameters()}
    distance = sum((to_torch(state.weights[name]) - weight).square().sum() for name, weight in weights.items())
    relative = float((distance / sum(weight.square().sum() for weight in weights.values())) ** 0.5)
    print(f"the weights differ by {relative:.1e} of their norm; traced: {dict(state.compiled.traced)}")


if __name__ == "__main__":
    main()
