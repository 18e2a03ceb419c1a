"""Train a text-to-image model: `python -m t2i.train`. What is heavy is imported by `t2i.experiment`, inside `main`."""

import logging
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from t2i.config import ConfigError
from t2i.config.checks import check, check_types
from t2i.config.compose import CONF
from t2i.config.keys import flat
from t2i.sweeps.manifest import job_folder

OmegaConf.register_new_resolver("either", lambda first, second: first or second, replace=True)
OmegaConf.register_new_resolver("stamp", lambda: stamp(), replace=True, use_cache=True)
OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(cfg: DictConfig) -> float:
    """Train one run; returns its final val/loss, which a sweeper may minimise."""
    from hydra.core.hydra_config import HydraConfig

    try:
        hydra_config = HydraConfig.get()
        _check_allowed(cfg, hydra_config)
        check_types(cfg, _defaults(hydra_config))
        check(cfg, num_processes=int(os.environ.get("WORLD_SIZE", 1)))
        if int(os.environ.get("RANK", 0)) > 0:
            logging.getLogger().setLevel(logging.WARNING)  # the main process speaks for all
        from t2i.plan import check_the_rest, make_plan

        plan = make_plan(cfg)
        check_the_rest(cfg)
        from t2i.experiment.run import run

        groups = {group: option for group, option in hydra_config.runtime.choices.items() if "hydra" not in group}
        return run(cfg, plan, Path(hydra_config.runtime.output_dir), list(hydra_config.overrides.task), groups)
    except (ConfigError, KeyboardInterrupt) as error:
        if hydra_config.mode.name == "MULTIRUN":
            raise
        folder = Path(hydra_config.runtime.output_dir)
        if isinstance(error, KeyboardInterrupt):
            results = Path("multirun").absolute()
            name = folder.relative_to(results) if folder.is_relative_to(results) else folder.name
            print(
                f"\nt2i: interrupted; add run={name} to the command to go on from the last checkpoint", file=sys.stderr
            )
            sys.exit(128 + getattr(error, "signum", signal.SIGINT))
        print(f"t2i: {error}", file=sys.stderr)
        _remove_if_empty(folder)
        sys.exit(2)


def stamp() -> str:
    """The time, for the name of a folder: of several processes on one machine the time at which they were launched."""
    started = time.time()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        import psutil

        started = psutil.Process(os.getppid()).create_time()
    return time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(started))


def cli() -> None:
    """The command line; where Hydra refuses a key, the nearest right one is named."""
    try:
        main()
    except SystemExit as stopped:
        if stopped.code == 1:
            for key, nearest in misspelt(sys.argv[1:]):
                print(f"t2i: {key} is no setting; did you mean {nearest}?", file=sys.stderr)
        raise


def misspelt(arguments: list[str]) -> list[tuple[str, str]]:
    """The keys among Hydra's arguments that do not exist, each with the one most like it."""
    from difflib import get_close_matches

    given = [argument.partition("=")[0] for argument in arguments if re.match(r"[\w.@/]+=", argument)]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        groups = [f"{path.parent.name}={path.stem}" for path in CONF.glob("*/*.yaml") if path.parent.name != "wandb"]
        try:
            cfg = hydra.compose("config", overrides=[each for each in arguments if each in groups])
        except HydraException:  # it is no key that is wrong
            return []
    known = {key for leaf in flat(OmegaConf.to_container(cfg)) for key in _parents(leaf)}
    known |= {group.partition("=")[0] for group in groups}
    nearest = {key: get_close_matches(key, known, n=1, cutoff=0.5) for key in given if not key.startswith("hydra")}
    return [(key, matches[0]) for key, matches in nearest.items() if key not in known and matches]


def _parents(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _check_allowed(cfg: DictConfig, hydra_config: DictConfig) -> None:
    """Refuse permissions that a file has given itself."""
    asked = any(override.startswith("allowed_targets=") for override in hydra_config.overrides.task)
    if cfg.allowed_targets and not asked:
        raise ConfigError(
            f"allowed_targets={list(cfg.allowed_targets)} comes from a file; it counts on the command line only"
        )


def _remove_if_empty(folder: Path) -> None:
    """Remove the folder that Hydra made for a run that never began."""
    if {path.name for path in folder.iterdir()} <= {".hydra", "train.log"}:
        shutil.rmtree(folder)


def _defaults(hydra_config: DictConfig) -> DictConfig:
    """The configuration with the chosen groups, but without changed values."""
    groups = [
        override for override in hydra_config.overrides.task if override.split("=")[0] in hydra_config.runtime.choices
    ]
    return hydra.compose("config", overrides=groups)


if __name__ == "__main__":
    cli()
