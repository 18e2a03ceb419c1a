"""Where Hydra looks for launchers: `hydra/launcher=processes`. The work is done in `t2i.sweeps.launcher`."""

from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

PRESETS = {  # of conf/hydra/ -> the module in which a plugin registers its own option of that name
    "launcher/joblib": "hydra_joblib_launcher.config",
    "launcher/submitit_local": "hydra_submitit_launcher.config",
    "launcher/submitit_slurm": "hydra_submitit_launcher.config",
    "launcher/ray": "hydra_ray_launcher._config",
    "sweeper/optuna": "hydra_optuna_sweeper.config",
}


class ProcessLauncher(Launcher):
    """Each job of a sweep in a process of its own; the options are those of conf/hydra/launcher/processes.yaml."""

    def __init__(self, **options: Any):
        self.options, self.workshop = options, None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        load = hydra_context.config_loader.load_sweep_config

        @cache
        def compose(overrides: tuple[str, ...]) -> DictConfig:
            return load(config, list(overrides))

        # The sweeper composes every job to see that it can be, and throws that away: here each is composed once.
        hydra_context.config_loader.load_sweep_config = lambda master_config, sweep_overrides: compose(
            tuple(sweep_overrides)
        )
        self.config, self.compose = config, compose

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        from t2i.sweeps.launcher import Workshop
        from t2i.train import main

        if self.workshop is None:  # a sweeper that learns from the results calls again
            self.workshop = Workshop(Path(self.config.hydra.sweep.dir), main, **self.options)
        return self.workshop.run([self.compose(tuple(overrides)) for overrides in job_overrides])


def _prefer_our_presets() -> None:
    """Hydra merges a file with the plugin's option of the same name, or refuses to; here the file in conf/ is all."""
    for preset, module in PRESETS.items():
        with suppress(ImportError):
            import_module(f"hydra_plugins.{module}")
            group, name = preset.split("/")
            ConfigStore.instance().repo["hydra"][group].pop(f"{name}.yaml", None)


_prefer_our_presets()
