"""Where Hydra looks for plugins: `hydra/launcher=processes`, and t2i's presets for the launchers of other plugins."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from t2i.sweeps.launcher import SweepRunner


class ProcessLauncher(Launcher):
    """Runs each job of a sweep in its own process; the options are those of conf/hydra/launcher/processes.yaml."""

    def __init__(self, **options: Any):
        self.options = options
        self.runner: SweepRunner | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.loader = config, hydra_context.config_loader

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        from t2i.runs.inheritance import with_parents
        from t2i.sweeps.launcher import SweepRunner
        from t2i.train import main

        if self.runner is None:  # a sweeper that learns from the results calls again
            self.runner = SweepRunner(Path(self.config.hydra.sweep.dir), main, **self.options)
        jobs = [with_parents(job) for job in job_overrides]  # each with the settings of the run that it begins with
        return self.runner.run([self.loader.load_sweep_config(self.config, job) for job in jobs])


class Presets(SearchPathPlugin):
    """Makes `hydra/launcher=joblib` mean conf/hydra/launcher/plugins/joblib.yaml, and likewise for every file there.

    The plugin joblib registers an option of that name, too. A file conf/hydra/launcher/joblib.yaml would be merged with
    it, or refused.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Replace the plugins' options, which are all registered when Hydra calls this."""
        for element in search_path.get_path():
            for file in Path(element.path.removeprefix("file://")).glob("hydra/*/plugins/*.yaml"):
                group = f"hydra/{file.parent.parent.name}"
                node = {"defaults": [f"plugins/{file.stem}@_here_"]}
                ConfigStore.instance().store(name=file.stem, node=node, group=group, provider="t2i")
