"""Several processes that train one network in JAX: how they find each other."""

import atexit
import logging
import os

import jax

from t2i.config import ConfigError
from t2i.distributed.launch import coordinator, peers

START = 300  # seconds in which all processes have to come
LAST = 60  # seconds in which the others end, before the first process does
SILENCE = 24 * 3600  # seconds after which JAX gives up a process; `Peers` notices at once that one has died


def join() -> None:
    """Let each process know the devices of all those that the environment names; before JAX looks for devices.

    Several processes of a node with GPUs take one each. ConfigError if the processes have different numbers of devices.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1 or jax.distributed.is_initialized():
        return
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    jax.config.update("jax_enable_recoverability", True)  # who fails, and what follows, is left to `Peers`
    shares_node = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1
    logging.getLogger("jax._src.distributed").setLevel(logging.WARNING)  # it tells of each address
    jax.distributed.initialize(
        coordinator(),
        num_processes=size,
        process_id=int(os.environ["RANK"]),
        local_device_ids=[int(os.environ["LOCAL_RANK"])] if shares_node else None,
        cluster_detection_method="deactivate",
        initialization_timeout=START,
        heartbeat_timeout_seconds=SILENCE,
    )
    if peers().rank == 0:  # JAX aborts processes that have lost the first one
        atexit.register(peers().outlive, LAST)
    own, devices = jax.local_device_count(), jax.device_count()
    if own * size != devices:
        raise ConfigError(
            f"backend=jax needs equally many devices in each process; this one has {own}, and all {size} have {devices}"
        )
