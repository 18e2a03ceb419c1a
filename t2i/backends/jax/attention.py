"""Attention by the kernel that suits device and shapes: cuDNN's on GPUs, Pallas' on TPUs, XLA's everywhere else.

The first two never hold all scores at once (Dao et al. 2022, arXiv 2205.14135).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from t2i.backends.jax.devices import AXIS, Devices

Attend = Callable[[Array, Array, Array], Array]  # of query, key and value, each [B, N, heads, D]
LONG = 1024  # tokens; the scores of fewer are small
LANE = 128  # of a TPU: what its kernel divides tokens and channels by


def by_xla(query: Array, key: Array, value: Array) -> Array:
    return jax.nn.dot_product_attention(query, key, value, implementation="xla")


def attention_on(devices: Devices) -> Attend:
    """The attention of batches that are divided among these devices."""
    kernels = {
        "xla": by_xla,
        "cudnn": partial(jax.nn.dot_product_attention, implementation="cudnn"),
        "pallas": partial(by_pallas, devices),
    }
    device = devices.mesh.devices.flat[0]
    return lambda query, key, value: kernels[kernel_for(device, query, key)](query, key, value)


def kernel_for(device: Any, query: Any, key: Any) -> str:
    """Which kernel suits: xla, cudnn or pallas. The last two multiply bfloat16.

    device: JAX's. query, key: with the shape [B, N, heads, D] and the type of the arrays.
    """
    if query.dtype != jnp.bfloat16 or min(query.shape[1], key.shape[1]) < LONG:
        return "xla"
    if device.platform == "tpu":
        return "pallas"
    capability, channels = _capability(device), query.shape[-1]
    most = 256 if capability >= 9 else 128  # as JAX says of cuDNN
    return "cudnn" if capability >= 8 and channels <= most and channels % 8 == 0 else "xla"


def _capability(device: Any) -> float:
    """Of an NVIDIA GPU, such as 9.0; 0 for what is none."""
    try:
        return float(device.compute_capability)
    except (AttributeError, ValueError):  # a CPU; an AMD GPU, whose name stands there
        return 0.0


def by_pallas(devices: Devices, query: Array, key: Array, value: Array) -> Array:
    """JAX's flash attention for TPUs; each device computes its examples."""
    if len(devices) == 1:
        return _flash(query, key, value)
    each = PartitionSpec(AXIS)
    return jax.shard_map(_flash, mesh=devices.mesh, in_specs=each, out_specs=each, check_vma=False)(query, key, value)


def _flash(query: Array, key: Array, value: Array) -> Array:
    """Tokens and channels are filled up to whole lanes; tokens attend to none of those that were added."""
    from jax.experimental.pallas.ops.tpu.flash_attention import SegmentIds, flash_attention

    tokens, channels = query.shape[1], query.shape[3]
    filled = [_filled(each.transpose(0, 2, 1, 3)) for each in (query, key, value)]
    lengths = [(each.shape[1], full.shape[2]) for each, full in zip((query, key), filled[:2], strict=True)]
    added = any(length < full for length, full in lengths)
    segments = [jnp.broadcast_to(jnp.arange(full) < length, (len(query), full)) for length, full in lengths]
    mixed = flash_attention(
        *filled,
        segment_ids=SegmentIds(*(each.astype(jnp.int32) for each in segments)) if added else None,
        sm_scale=channels**-0.5,
        block_sizes=_blocks(*(full for _, full in lengths)),
    )
    return mixed[:, :, :tokens, :channels].transpose(0, 2, 1, 3)


def _filled(x: Array) -> Array:
    """x: [B, heads, N, D], with zeros behind its tokens and channels."""
    return jnp.pad(x, [(0, 0), (0, 0), *((0, -size % LANE) for size in x.shape[2:])])


def _blocks(queries: int, keys: int) -> Any:
    """Of the kernel: the longest up to 512 that divide the numbers of tokens."""
    from jax.experimental.pallas.ops.tpu.flash_attention import BlockSizes

    q, k = (next(size for size in (512, 256, LANE) if tokens % size == 0) for tokens in (queries, keys))
    forward = {"block_q": q, "block_k_major": k, "block_k": k, "block_b": 1}
    of_keys = {"block_q_major_dkv": q, "block_k_major_dkv": k, "block_k_dkv": k, "block_q_dkv": q}
    return BlockSizes(**forward, **of_keys, block_k_major_dq=k, block_k_dq=k, block_q_dq=q)
