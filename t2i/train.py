"""Train a text-to-image model: `python -m t2i.train`. What is heavy is imported by `t2i.experiment`, inside `main`."""

import os
import shutil
import signal
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from t2i.config import ConfigError, check, check_types
from t2i.sweeps import job_folder

HERE = Path(__file__).resolve().parent
CONF = next(path for path in (HERE / "conf", HERE.parent / "conf") if path.is_dir())  # in a wheel, in a checkout
OmegaConf.register_new_resolver("either", lambda first, second: first or second, replace=True)
OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(cfg: DictConfig) -> float:
    """Train one run; returns its final val/loss, which a sweeper may minimise."""
    from hydra.core.hydra_config import HydraConfig

    try:
        hydra_config = HydraConfig.get()
        check_types(cfg, _defaults(hydra_config))
        check(cfg, num_processes=int(os.environ.get("WORLD_SIZE", 1)))
        from t2i.plan import check_the_rest, settle

        plan = settle(cfg)
        check_the_rest(cfg)
        from t2i.experiment import run

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
    main()
