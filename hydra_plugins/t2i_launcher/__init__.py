"""Where Hydra looks for plugins: `hydra/launcher=processes`, and t2i's presets for the launchers of other plugins."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from t2i.sweeps.launcher import Place, SweepRunner
    from t2i.sweeps.slurm_script import SlurmOptions

log = logging.getLogger(__name__)
LAUNCHER = ("hydra/launcher=", "hydra.launcher.")  # how overrides begin that concern the launcher
FORMER = ("submitit_folder", "max_num_timeout", "stderr_to_stdout")  # options of hydra/launcher=submitit_slurm


class ProcessLauncher(Launcher):
    """Runs each job of a sweep in its own process; the options are those of conf/hydra/launcher/processes.yaml."""

    def __init__(self, **options: Any):
        self.options = options
        self.runner: SweepRunner | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from t2i.sweeps.compositions import Compositions

        self.compositions = Compositions(hydra_context)
        self.compositions.check_quickly()
        self.config, self.loader = config, hydra_context.config_loader
        self.context, self.task_function = hydra_context, task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        from t2i.runs.inheritance import with_parents

        if self.runner is None:  # a sweeper that learns from the results calls again
            self.runner = self.make_runner(Path(self.config.hydra.sweep.dir))
        jobs = [with_parents(job) for job in job_overrides]  # each with the settings of the run that it begins with
        load = self.compositions.load_sweep_config
        configs = (self.checked(load(self.config, job)) for job in jobs)  # one at a time
        self.compositions.compose_fully()
        try:
            return self.runner.run(configs)
        finally:
            self.compositions.check_quickly()  # the next jobs of a sweeper that learns from the results

    def make_runner(self, folder: Path) -> "SweepRunner":
        from t2i.sweeps.launcher import SweepRunner

        return SweepRunner(folder, self.place(folder))

    def checked(self, config: DictConfig) -> DictConfig:
        """The job; raises ConfigError if this launcher can't run it."""
        return config

    def place(self, folder: Path) -> "Place":
        """Where the jobs run. folder: of the sweep."""
        from t2i.sweeps.machine import Machine
        from t2i.train import main

        return Machine(main, **self.options)


class RayLauncher(ProcessLauncher):
    """Runs the jobs of a sweep on a Ray cluster; the options are those of conf/hydra/launcher/plugins/ray.yaml."""

    def place(self, folder: Path) -> "Place":
        from t2i.sweeps.ray_cluster import RayCluster
        from t2i.train import main

        return RayCluster(main, **self.options)


class SlurmLauncher(ProcessLauncher):
    """Runs the jobs of a sweep on a Slurm cluster; the options are those of conf/hydra/launcher/slurm.yaml."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        former = {name: self.options.pop(name, None) for name in FORMER}
        if config.hydra.runtime.choices.get("hydra/launcher") == "submitit_slurm":
            ignored = [f"hydra.launcher.{name}" for name, value in former.items() if value is not None]
            without = f"; {', '.join(ignored)} has no effect any more" if ignored else ""
            log.warning("hydra/launcher=submitit_slurm is now hydra/launcher=slurm, and needs no plugin%s", without)

    def place(self, folder: Path) -> "Place":
        from t2i.sweeps.slurm_cluster import SlurmCluster
        from t2i.train import main

        return SlurmCluster(main, folder, self._needs())

    def checked(self, config: DictConfig) -> DictConfig:
        self._needs().refuse_batches(config)
        return config

    def _needs(self) -> "SlurmOptions":
        from t2i.sweeps.slurm_script import SlurmOptions

        return SlurmOptions(**self.options)


class RacingLauncher(ProcessLauncher):
    """Runs a sweep as a race; the options are those of conf/hydra/launcher/racing.yaml."""

    def __init__(self, via: str | None, via_options: dict[str, Any] | None, **options: Any):
        super().__init__(**options)
        self.via, self.via_options = via, via_options
        self.elsewhere: Launcher | None = None

    def make_runner(self, folder: Path) -> "SweepRunner":
        from t2i.sweeps.machine import Machine
        from t2i.sweeps.race_options import RaceOptions
        from t2i.sweeps.racing import RacingRunner
        from t2i.train import main

        options = dict(self.options)
        place: Place = Machine(main, **{name: options.pop(name) for name in ("n_jobs", "command")})
        self.elsewhere = elsewhere = self.launcher() if self.via else None
        if isinstance(elsewhere, ProcessLauncher):
            place, elsewhere = elsewhere.place(folder), None
        return RacingRunner(folder, place, RaceOptions(**options), elsewhere)

    def checked(self, config: DictConfig) -> DictConfig:
        return self.elsewhere.checked(config) if isinstance(self.elsewhere, ProcessLauncher) else config

    def launcher(self) -> Launcher:
        """The launcher of another plugin, by its preset, which runs the jobs of a round."""
        from t2i.sweeps.manifest import refuse_missing_plugins

        hydra = self.config.hydra
        kept = [override for override in hydra.overrides.hydra if not override.startswith(LAUNCHER)]
        overrides = [*kept, f"hydra/launcher={self.via}", *hydra.overrides.task]
        config = self.loader.load_configuration(hydra.job.config_name, overrides, run_mode=RunMode.MULTIRUN)
        OmegaConf.copy_cache(from_config=self.config, to_config=config)  # the same ${now:}
        OmegaConf.update(config, "hydra.launcher", self.via_options or {})
        refuse_missing_plugins(config)
        return Plugins.instance().instantiate_launcher(self.context, self.task_function, config)


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
