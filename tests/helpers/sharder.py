"""`python -m t2i.train` with FSDP 2 on the CPU, for `accelerate launch --multi_gpu`.

Accelerate itself would refuse the CPU, although PyTorch shards there as well: its state is told that it is FSDP. What
an accelerate file would set is in the variables FSDP_*, as `accelerate launch` sets them.
"""

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from t2i import train
from t2i.cli.failing import run
from t2i.distributed import processes


def forced(**settings) -> Accelerator:
    accelerator = Accelerator(**settings)
    accelerator.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    return accelerator


if __name__ == "__main__":
    processes.Accelerator = forced
    run(train.cli)
