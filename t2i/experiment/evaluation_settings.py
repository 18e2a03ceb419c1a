"""The settings by which finished models are judged: those of a run, with what the command line changes."""

import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from t2i.config import CONF
from t2i.config.checks import check_evaluation, check_fixed
from t2i.config.compose import compose
from t2i.config.instantiate import check_targets, resolve_once
from t2i.runs import config_file
from t2i.runs.config_file import read_config
from t2i.runs.folder import INFO, read_info

OPTION = re.compile(r"\w+")


def evaluation_settings(run: Path | None, overrides: list[str]) -> DictConfig:
    """A configuration whose `dataset`, `evaluation` and `metric` say how to judge; the rest of it is not used.

    run: whose settings these are, as far as `overrides` do not change them; it may be a stranger's, and can give no
    permissions. None: the settings are those of `t2i train OVERRIDES`.
    """
    began = read_config(run) if run is not None else {}
    cfg = compose([*_model(run), *overrides])
    typed = {override.lstrip("+~").partition("=")[0] for override in overrides}
    changed = {name.partition(".")[0] for name in typed} | ({"metric"} if "evaluation.clip" in typed else set())
    for key in {"dataset", "metric"} & began.keys() - changed:
        OmegaConf.update(cfg, key, began[key], merge=False, force_add=True)
        if key == "dataset" and began[key].get("follow_links"):
            cfg.dataset.follow_links = False
    for name, value in began.get("evaluation", {}).items():
        if f"evaluation.{name}" not in typed:
            OmegaConf.update(cfg, f"evaluation.{name}", value, merge=False, force_add=True)
    cfg = resolve_once(cfg)
    check_targets(cfg)
    check_fixed(cfg)
    check_evaluation(cfg.evaluation)
    return cfg


def _model(run: Path | None) -> list[str]:
    """The option model=... of a run, for settings that runs of earlier versions lack."""
    choices: dict[str, Any] = read_info(run).get("choices", {}) if run is not None and (run / INFO).is_file() else {}
    model = choices.get("model")
    known = isinstance(model, str) and OPTION.fullmatch(model) and (CONF / "model" / f"{model}.yaml").is_file()
    return [f"model={model}"] if known else []


def run_of(source: str) -> Path | None:
    """The run folder that a path names, or that a checkpoint or exported model lies in; None for anything else."""
    folder = Path(source)
    if not folder.is_dir():
        return None
    folder = folder.resolve()
    return next((place for place in (folder, *folder.parents[:2]) if (place / config_file.NAME).is_file()), None)
