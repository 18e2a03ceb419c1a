"""A Slurm cluster of two nodes on this machine, from Debian's slurmctld, slurmd and slurm-client."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from helpers.runs import free_port

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
NODES = ("left", "right")
# Without munge, cgroups and accounting, and all of it by the user who starts it. With cred_expire, a job that is queued
# again waits for 5 seconds rather than two minutes.
CONF = """
ClusterName=t2i
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1
ReturnToService=2
KillWait=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 State=UP
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=10 State=UP
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=16 RealMemory=65536\n"


def missing() -> list[str]:
    """The programs of Slurm that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


def _path() -> str:
    return f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin"


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Within, there is a cluster; yields the variables of the environment by which it is found."""
    host, user = socket.gethostname().partition(".")[0], getpass.getuser()
    settings = CONF.format(host=host, port=free_port(), user=user, folder=folder)
    settings += "".join(NODE.format(name=name, host=host, port=free_port()) for name in NODES)
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir(parents=True)
    (folder / "slurm.conf").write_text(settings)
    environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
    try:
        _start(environment, "slurmctld", "-i")
        for node in NODES:
            _start(environment, "slurmd", "-N", node)
        _wait_until_idle(environment, folder)
        yield environment
    finally:
        run(environment, "scancel", f"--user={user}")
        _wait_until_empty(environment)
        for file in folder.glob("*.pid"):
            with suppress(ValueError, ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGTERM)


def run(environment: dict[str, str], *command: str) -> str:
    """What a program of Slurm prints."""
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True).stdout


def _start(environment: dict[str, str], *command: str) -> None:
    subprocess.run(command, env=os.environ | environment, check=True)


def _wait_until_idle(environment: dict[str, str], folder: Path) -> None:
    for _ in range(300):
        if set(run(environment, "sinfo", "--noheader", "--Node", "--format=%t").split()) == {"idle"}:
            return
        time.sleep(0.1)
    raise RuntimeError((folder / "slurmctld.log").read_text()[-2000:])


def _wait_until_empty(environment: dict[str, str]) -> None:
    for _ in range(300):
        if not run(environment, "squeue", "--noheader").strip():
            return
        time.sleep(0.1)
