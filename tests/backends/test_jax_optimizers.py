"""The optimizers in JAX take the steps of PyTorch's, and keep the same state."""

import pytest
import torch

pytest.importorskip("jax")

import jax
import jax.numpy as jnp
import numpy as np

from t2i.backends.jax.optimizers import optimizer_of
from t2i.config import ConfigError

SHAPES = {"kernel": (4, 3, 3, 3), "matrix": (5, 4), "vector": (6,)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adafactor])
def test_steps_and_state_are_those_of_pytorch(kind):
    """Five steps with a learning rate that changes, between gradients that differ by a factor of 1,000."""
    random = torch.Generator().manual_seed(0)
    theirs = {name: torch.nn.Parameter(torch.randn(shape, generator=random)) for name, shape in SHAPES.items()}
    optimizer = kind(theirs.values(), lr=1e-2, weight_decay=0.1)
    update = optimizer_of(optimizer.param_groups[0], kind)
    ours = {name: jnp.asarray(weight.detach().numpy()) for name, weight in theirs.items()}
    states = {name: update.initial(weight) for name, weight in ours.items()}

    @jax.jit
    def step_of_all(weights, gradients, states, step, lr):
        return {name: update(weights[name], gradients[name], states[name], step, lr) for name in weights}

    for step in range(1, 6):
        lr = optimizer.param_groups[0]["lr"] = 1e-2 / step
        for name, weight in theirs.items():
            weight.grad = torch.randn(SHAPES[name], generator=random) * 10.0 ** -(step % 3)
        gradients = {name: jnp.asarray(weight.grad.numpy()) for name, weight in theirs.items()}
        optimizer.step()
        new = step_of_all(ours, gradients, states, jnp.int32(step), jnp.float32(lr))
        ours, states = ({name: each[place] for name, each in new.items()} for place in (0, 1))
    for name, weight in theirs.items():
        np.testing.assert_allclose(ours[name], weight.detach().numpy(), rtol=2e-6, atol=1e-6)
        kept = {key: value for key, value in optimizer.state[weight].items() if key != "step"}
        assert states[name].keys() == kept.keys()
        for key, value in kept.items():
            np.testing.assert_allclose(states[name][key], value.numpy(), rtol=1e-5, atol=1e-12)


def test_settings_that_would_change_the_step_are_refused():
    group = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], amsgrad=True).param_groups[0]
    with pytest.raises(ConfigError, match=r"optimizer.amsgrad=True is not supported by backend=jax; leave it out"):
        optimizer_of(group, torch.optim.AdamW)
