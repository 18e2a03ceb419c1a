"""Train a text-to-image model: `t2i train`. Heavy modules are imported when the settings have been checked."""

import logging
import os
import shutil
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.conf import HydraConf
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from t2i.cli.failing import exits, run
from t2i.cli.log_records import clean_logs
from t2i.config import CONF, ConfigError
from t2i.config.checks import check, check_permissions, check_types
from t2i.config.compose import chosen_options
from t2i.config.config_files import guard_files
from t2i.config.foreign import check_foreign_files
from t2i.config.hints import say_what_adapters_learn_with, say_what_samples_show
from t2i.config.instantiate import resolve, resolve_once
from t2i.config.keys import flat
from t2i.config.misspelt import refuse_flags, refuse_without_multirun
from t2i.config.model_size import check_model_is_named
from t2i.config.resolvers import register
from t2i.config.secrets import redact
from t2i.config.typed import as_typed
from t2i.distributed import launch
from t2i.distributed.ranks import ranks_from_slurm
from t2i.runs.at_start import at_start
from t2i.runs.folder import begun_with
from t2i.runs.fork_rules import open_parent
from t2i.runs.inheritance import as_parent, with_parents
from t2i.sweeps.manifest import as_begun, job_folder

if TYPE_CHECKING:
    from t2i.api.run import Run

log = logging.getLogger(__name__)
register(job_folder, launch.stamp)
guard_files()
HYDRA_FLAGS = {flag for action in get_args_parser()._actions for flag in action.option_strings}


def main() -> None:
    """Train what sys.argv says, once Hydra is known to act on no file of a stranger's."""
    with exits(sys.argv[1:]):
        os.environ.update(ranks_from_slurm())
        if "--version" in sys.argv[1:]:
            from t2i.cli.main import versions

            print(versions())
            return
        refuse_flags(sys.argv[1:], HYDRA_FLAGS)
        refuse_without_multirun(sys.argv[1:])
        sys.argv[1:] = with_parents(as_typed(sys.argv[1:]))
        check_foreign_files(sys.argv[1:])
        launch.connect()
    hydra_main()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def hydra_main(cfg: DictConfig) -> float:
    """Train one run; returns its final val/loss, which a sweeper may minimise."""
    from hydra.core.hydra_config import HydraConfig

    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN:  # the launcher catches what a job raises
        return train(cfg, hydra_config)
    with exits():
        folder = Path(hydra_config.runtime.output_dir)
        try:
            with launch.peers().reporting():
                return train(cfg, hydra_config)
        except ConfigError:
            _remove_if_empty(folder)
            raise
        except KeyboardInterrupt as error:
            if int(os.environ.get("RANK", 0)) == 0:  # the others come here before the checkpoint is written
                error.add_note(_how_to_go_on(folder, list(hydra_config.overrides.task)))
            raise


def _how_to_go_on(folder: Path, overrides: list[str]) -> str:
    """What to type for a run that was interrupted."""
    from t2i.runs.next_steps import next_steps

    (step,) = next_steps(folder, "interrupted", {"overrides": overrides})
    return f"to {step.what}: {step.command}"


def train(cfg: DictConfig, hydra_config: HydraConf) -> float:
    """Check the settings, cheapest first; then train in the folder that Hydra made."""
    clean_logs()
    overrides, folder = list(hydra_config.overrides.task), Path(hydra_config.runtime.output_dir)
    choices = {group: option for group, option in hydra_config.runtime.choices.items() if "hydra" not in group}
    _redact_files(folder / ".hydra")
    if (complete := with_parents(overrides)) != overrides:  # a job of a launcher that knows no parents
        cfg, choices, overrides = *_composed(complete), complete
    kept = as_begun(cfg, folder, overrides, choices)
    cfg = resolve_once(cfg)
    check_permissions(cfg, overrides)
    check_types(cfg, defaults=hydra.compose("config", overrides=chosen_options(overrides, choices)))
    as_parent(cfg, lambda of_parent: flat(resolve(_composed(of_parent)[0])))
    if not begun_with(folder):
        check_model_is_named(cfg, str(choices["model"]), overrides)
        say_what_samples_show(cfg)
        say_what_adapters_learn_with(cfg, str(choices["model"]), overrides)
    check(cfg, num_processes=int(os.environ.get("WORLD_SIZE", 1)))
    parent = open_parent(cfg, folder)
    if int(os.environ.get("RANK", 0)) > 0:
        logging.getLogger().setLevel(logging.WARNING)  # the main process logs for all
    for key, (then, now) in kept.items():
        log.info("%s=%s, the default when this run began; it is %s today", key, then, now)
    from t2i.experiment.plan import check_the_rest, make_plan

    plan = make_plan(cfg, at_start(folder, parent))
    check_the_rest(cfg)
    from t2i.experiment.run import run

    return run(cfg, plan, folder, overrides, choices)


def _composed(overrides: list[str]) -> tuple[DictConfig, dict[str, str]]:
    """The configuration of these overrides, and the option of each group."""
    cfg = hydra.compose("config", overrides=overrides, return_hydra_config=True)
    chosen = cfg.hydra.runtime.choices
    choices = {group: option for group, option in chosen.items() if "hydra" not in group}
    return OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]), choices


def cli(arguments: list[str] | None = None) -> None:
    """The command line. Its errors are raised: `t2i.cli.failing.run` reports them."""
    if arguments is not None:
        sys.argv = ["t2i train", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra prints its errors, and exits
    try:
        main()
    except ValueError as error:
        if traceback.extract_tb(error.__traceback__)[-1].name == "_run_hydra":  # flags that contradict each other
            raise ConfigError(str(error)) from error
        if isinstance(error.__cause__, OSError):  # what logging says of a train.log that can't be written
            raise error.__cause__ from None
        raise


def _redact_files(folder: Path) -> None:
    """Blank secrets in the files that Hydra has written."""
    for file in folder.glob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        if (redacted := redact(text)) != text:
            file.write_text(redacted, encoding="utf-8")


def _remove_if_empty(folder: Path) -> None:
    """Remove the folder that Hydra made for a run that never began."""
    with suppress(FileNotFoundError):  # another process of the run removes it, too
        if {path.name for path in folder.iterdir()} <= {".hydra", "train.log"}:
            shutil.rmtree(folder)


class _Callable(ModuleType):
    """This module, which can be called, too: t2i.train("steps=100") in Python is the command `t2i train steps=100`."""

    def __call__(self, *overrides: str, show: bool = True, **named: Any) -> "Run":
        from t2i.api.training import train

        return train(*overrides, show=show, **named)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    run(cli)
