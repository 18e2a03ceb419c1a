"""Where Hydra looks for launchers: `hydra/launcher=processes`. The work is done in `t2i.jobs`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class ProcessLauncher(Launcher):
    """Each job of a sweep in a process of its own; the options are those of conf/hydra/launcher/processes.yaml."""

    def __init__(self, **options: Any):
        self.options, self.workshop = options, None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        from t2i.jobs import Workshop

        if self.workshop is None:  # a sweeper that learns from the results calls again
            self.workshop = Workshop(Path(self.config.hydra.sweep.dir), **self.options)
        configs = [self.hydra_context.config_loader.load_sweep_config(self.config, list(o)) for o in job_overrides]
        return self.workshop.run(configs)
