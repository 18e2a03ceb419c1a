"""`python -m t2i.train` with FSDP 2 on the CPU, for `accelerate launch --multi_gpu`.

Accelerate refuses FSDP on a CPU, although PyTorch shards there as well, so here each Accelerator gets the state of
FSDP after it was made. The settings of an Accelerate file are in the variables FSDP_*, as `accelerate launch` sets
them.
"""

import os

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from t2i import train
from t2i.cli.failing import run

REQUEST = "ACCELERATE_USE_FSDP"  # of `accelerate launch --use_fsdp`


def shard_on_cpu() -> None:
    os.environ[REQUEST] = "true"
    initialize = Accelerator.__init__

    def with_fsdp(self, *arguments, **settings) -> None:
        del os.environ[REQUEST]
        initialize(self, *arguments, **settings)
        os.environ[REQUEST] = "true"
        self.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
        self.state.fsdp_plugin = FullyShardedDataParallelPlugin()

    Accelerator.__init__ = with_fsdp


if __name__ == "__main__":
    shard_on_cpu()
    run(train.cli)
