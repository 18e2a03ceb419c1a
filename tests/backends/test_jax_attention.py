"""Which kernel computes the attention, and that Pallas' for TPUs is XLA's attention (in its interpreter, on a CPU)."""

from types import SimpleNamespace

import pytest

pytest.importorskip("jax")

import jax
import jax.numpy as jnp
import numpy as np

from t2i.backends.jax.attention import by_pallas, by_xla, kernel_for
from t2i.backends.jax.devices import Devices

CPU = SimpleNamespace(platform="cpu")
TPU = SimpleNamespace(platform="tpu")
A100, H100, T4 = (SimpleNamespace(platform="gpu", compute_capability=number) for number in ("8.0", "9.0", "7.5"))
AMD = SimpleNamespace(platform="gpu", compute_capability="gfx90a")


def shape(tokens, channels=64, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct((2, tokens, 8, channels), dtype)


@pytest.mark.parametrize(
    ("device", "query", "key", "kernel"),
    [
        (CPU, shape(4096), shape(4096), "xla"),
        (TPU, shape(4096, 40), shape(4096, 40), "pallas"),
        (TPU, shape(4429), shape(4429), "pallas"),  # of Stable Diffusion 3
        (TPU, shape(4096), shape(77), "xla"),
        (TPU, shape(4096, dtype=jnp.float32), shape(4096), "xla"),
        (A100, shape(4096, 40), shape(4096, 40), "cudnn"),
        (A100, shape(1024, 160), shape(1024, 160), "xla"),
        (H100, shape(1024, 160), shape(1024, 160), "cudnn"),
        (H100, shape(1024, 260), shape(1024, 260), "xla"),
        (H100, shape(64), shape(64), "xla"),
        (H100, shape(4096, dtype=jnp.float32), shape(4096), "xla"),
        (T4, shape(4096), shape(4096), "xla"),
        (AMD, shape(4096), shape(4096), "xla"),
    ],
)
def test_the_kernel_follows_from_device_type_and_shapes(device, query, key, kernel):
    assert kernel_for(device, query, key) == kernel


def draws(batch, queries, keys, channels):
    random = np.random.default_rng(0)
    shapes = ((batch, queries, 1, channels), (batch, keys, 1, channels), (batch, keys, 1, channels))
    return [jnp.asarray(random.standard_normal(shape, np.float32)) for shape in shapes]


@pytest.mark.slow  # the interpreter takes seconds
@pytest.mark.parametrize(
    ("devices", "queries", "keys", "channels"), [(1, 256, 256, 128), (2, 200, 130, 40)], ids=["whole", "filled up"]
)
def test_pallas_is_xla(devices, queries, keys, channels):
    """Values and gradients, also of tokens and channels that don't fill the lanes of a TPU, on several devices."""
    from jax.experimental.pallas import tpu

    row, arrays = Devices(devices=jax.devices()[:devices]), draws(devices, queries, keys, channels)

    def outcome(attend):
        mixed, pull_back = jax.vjp(attend, *arrays)
        return mixed, *pull_back(jnp.sin(mixed))

    with tpu.force_tpu_interpret_mode():
        ours = outcome(lambda *given: by_pallas(row, *given))
    for one, other in zip(ours, outcome(by_xla), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * float(jnp.abs(other).max()))
