"""How the processes of one run find each other when they start, on one node or several, and after elastic restarts."""

import hashlib
import json
import os
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.config import ConfigError
from t2i.config.resolvers import in_multirun, now
from t2i.distributed.messages import Connection, Listener, introduce
from t2i.distributed.peers import Peers
from t2i.runs.files import read_json
from t2i.runs.folder import INFO

if TYPE_CHECKING:
    from torch.distributed import Store

PATIENCE = 600  # seconds in which all processes have to come
_peers = Peers()
_store: "Store | None" = None  # of process 0, which the process group uses, too


def peers() -> Peers:
    """The processes that `connect` has found."""
    return _peers


def connect() -> None:
    """Find the processes that the environment names, as torchrun sets it (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT).

    Raises ConfigError if they don't come.
    """
    global _peers
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    own = [agent()] if "TORCHELASTIC_RUN_ID" in os.environ else []
    if size == 1:
        _peers = Peers(launchers=tuple(own))
    elif _peers.size == 1:
        connections, welcome = _lead(size, own) if rank == 0 else _join(rank, size, own)
        _use_fresh_store(welcome["store"])
        _peers = Peers(rank, size, connections, tuple(welcome["launchers"]))


def coordinator() -> str:
    """An address of process 0, host:port, for another library by which the processes find each other.

    The same in all processes; it does not come before process 0 asks for it, too.
    """
    store, key = _common_store(), f"{_key()}/coordinator"
    if _peers.rank == 0:
        with socket.socket() as free:
            free.bind(("", 0))
            store.set(key, str(free.getsockname()[1]))
    return f"{os.environ['MASTER_ADDR']}:{store.get(key).decode()}"


def agent() -> str:
    """This process's parent, an agent of torchrun, which outlives restarts of its processes."""
    import psutil

    parent = psutil.Process(os.getppid())
    return hashlib.sha256(f"{socket.gethostname()} {parent.pid} {parent.create_time():.1f}".encode()).hexdigest()[:16]


def stamp(group: str) -> str:
    """group/TIME for a run without a name: the same for all its processes, and after elastic restarts."""
    return f"{group}/{_peers.agree(lambda: _earlier(Path(in_multirun(group))) or now())}"


def _earlier(group: Path) -> str | None:
    """The run that the same agents have begun, before they started their processes again."""
    if not _peers.launchers:
        return None
    for file in sorted(group.glob(f"*/{INFO}"), reverse=True):
        try:
            begun_by = read_json(file, "").get("launchers")
        except ConfigError:  # damaged, and of another run
            continue
        if isinstance(begun_by, list) and set(begun_by) & set(_peers.launchers):
            return file.parent.name
    return None


def _lead(size: int, launchers: list[str]) -> tuple[tuple[Connection, ...], dict[str, Any]]:
    """Wait for all other processes; returns the connections to them, and what they are told."""
    global _store
    from torch.distributed import TCPStore

    store, listener, own = _common_store(), Listener(), _address()
    store.set(_key(), json.dumps({"host": own, "port": listener.port, "secret": listener.secret}))
    found: dict[int, Connection] = {}
    deadline = time.monotonic() + PATIENCE
    while len(found) < size - 1:
        try:
            arrived = listener.accept(timeout=max(0.1, deadline - time.monotonic()))
        except TimeoutError:
            missing = ", ".join(str(rank) for rank in range(1, size) if rank not in found)
            raise ConfigError(
                f"after {PATIENCE} s, these of {size} processes have not come: {missing}; see their output, and start "
                "them all again"
            ) from None
        if arrived is not None:
            connection, hello = arrived
            found[connection.rank] = connection
            launchers = [*launchers, *hello["launchers"]]
    listener.close()
    # The store of torchrun's agent still holds the addresses of an earlier round's processes, at which gloo would wait.
    fresh = TCPStore(own, 0, is_master=True, multi_tenant=True) if _of_agent() else None
    _store = fresh or store
    welcome = {"launchers": sorted(set(launchers)), "store": [own, fresh.port] if fresh else None}
    for connection in found.values():
        connection.send(**welcome)
    return tuple(found.values()), welcome


def _join(rank: int, size: int, launchers: list[str]) -> tuple[tuple[Connection, ...], dict[str, Any]]:
    """Connect to process 0; returns the connection, and what process 0 tells when all are there."""
    deadline, reason = time.monotonic() + PATIENCE, ""
    store = _common_store()
    while time.monotonic() < deadline:
        leader = json.loads(store.get(_key()))  # of an earlier round, until process 0 has set its own
        try:
            connection = introduce(**leader, own_rank=rank, own_host=socket.gethostname(), launchers=launchers)
            return (connection,), connection.read_one(timeout=PATIENCE + 30)
        except (OSError, ValueError) as error:
            reason = f" ({leader['host']}, port {leader['port']}: {error})"
            time.sleep(0.2)
    raise ConfigError(
        f"process {rank} of {size} does not reach process 0{reason}; the nodes must reach each other's ports"
    )


def _common_store() -> "Store":
    """The store at MASTER_ADDR and MASTER_PORT, of torchrun's agent or of process 0."""
    from torch.distributed import DistError, TCPStore

    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if not host or not port.isdigit():
        raise ConfigError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}, but MASTER_ADDR and MASTER_PORT don't say where process 0 is; "
            "start the processes by torchrun or accelerate launch, or set both"
        )
    leads = os.environ.get("RANK", "0") == "0" and not _of_agent()
    try:
        return TCPStore(host, int(port), is_master=leads, timeout=timedelta(seconds=PATIENCE), multi_tenant=True)
    except (DistError, RuntimeError) as error:
        raise ConfigError(
            f"MASTER_ADDR={host} MASTER_PORT={port}: {'the port is taken' if leads else 'nobody answers'} "
            f"({str(error).splitlines()[0]})"
        ) from error


def _of_agent() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _key() -> str:
    return f"t2i/{os.environ.get('TORCHELASTIC_RUN_ID', '')}/process-0"


def _address() -> str:
    """Where the other nodes reach this one: the address by which it reaches MASTER_ADDR, unless they are the same."""
    master = os.environ["MASTER_ADDR"]
    with socket.create_connection((master, int(os.environ["MASTER_PORT"])), timeout=30) as probe:
        own = probe.getsockname()[0]
    return master if own.startswith("127.") or own == "::1" else own


def _use_fresh_store(address: list[Any] | None) -> None:
    """Let torch.distributed, and so Accelerate, use this store."""
    if address is not None:
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = str(address[0]), str(address[1])
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
