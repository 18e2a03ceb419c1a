"""The ranks of processes that `srun` starts, in the variables by which PyTorch and Accelerate find each other."""

import os
import re
import socket
from collections.abc import Callable, Mapping

from t2i.distributed.slurm import show

FIRST_PORT, PORTS = 15_000, 15_000  # below those that systems hand out by themselves


def ranks_from_slurm(
    environment: Mapping[str, str] = os.environ, address: Callable[[str], str] | None = None
) -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT of a task of `srun`.

    {} for a single task, outside of srun, and where another launcher has set WORLD_SIZE. The script of a batch job is
    no task of srun, although Slurm describes the tasks that it may start in variables of the same names. MASTER_ADDR
    and MASTER_PORT stay as they are if they are set.

    address: of a node, by its name in Slurm.
    """
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks == 1 or "WORLD_SIZE" in environment:
        return {}
    local, on_node = int(environment["SLURM_LOCALID"]), _tasks_on_node(environment)
    visible = [device for device in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    found = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": str(local % len(visible) if visible else local),  # --gpus-per-task shows each task its own GPU
        "LOCAL_WORLD_SIZE": str(on_node),
    }
    if "MASTER_ADDR" not in environment:
        found["MASTER_ADDR"] = (address or _address)(_first_node(environment["SLURM_STEP_NODELIST"]))
    if "MASTER_PORT" not in environment:  # jobs that share a node, and steps of one job, need different ones
        number = int(environment["SLURM_JOB_ID"]) + 101 * int(environment["SLURM_STEP_ID"])
        found["MASTER_PORT"] = str(FIRST_PORT + number % PORTS)
    return found


def _tasks_on_node(environment: Mapping[str, str]) -> int:
    """From SLURM_STEP_TASKS_PER_NODE, such as 4(x2),1."""
    counts: list[int] = []
    for count, _, times in re.findall(r"(\d+)(\(x(\d+)\))?", environment["SLURM_STEP_TASKS_PER_NODE"]):
        counts += [int(count)] * int(times or 1)
    return counts[int(environment["SLURM_NODEID"])]


def _first_node(nodes: str) -> str:
    """Of a list such as gpu[03-05,9]-ib,login1."""
    return re.sub(r"\[([^],-]+)[^]]*\]", r"\1", nodes).partition(",")[0]


def _address(node: str) -> str:
    """The node's name, or its address in Slurm's configuration if no other machine knows the name."""
    try:
        socket.getaddrinfo(node, None)
    except OSError:
        return show("node", node).get("NodeAddr", node)
    return node
