"""What a configuration may look like: checks before anything heavy."""

import os
import shutil
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from t2i.config import ConfigError

AT_LEAST = {
    "seed": 0, "steps": 0, "batch_size": 1, "micro_batch_size": 1, "max_grad_norm": 0, "max_bad_steps": 1,
    "caption_dropout": 0, "noise_offset": 0, "input_perturbation": 0, "log_every": 0, "validate_every": 0,
    "sample_every": 0, "save_every": 0, "keep_checkpoints": 1, "num_workers": 0, "validation.items": 1,
    "validation.timesteps": 1, "validation.seed": 0, "samples.steps": 1, "samples.seed": 0,
}  # fmt: skip
ATTENTION = ("auto", "sdpa", "math", "xformers")


def check(cfg: DictConfig, num_processes: int) -> None:
    """Refuse values out of range and settings that contradict each other."""
    for key, least in AT_LEAST.items():
        if (value := OmegaConf.select(cfg, key)) < least:
            raise ConfigError(f"{key}={value} must be at least {least}")
    if cfg.caption_dropout > 1:
        raise ConfigError(f"caption_dropout={cfg.caption_dropout} is a share of the captions: at most 1")
    if not cfg.samples.prompts:
        raise ConfigError("samples.prompts is empty; to draw no samples, use sample_every=0")
    if cfg.stop_at is not None and not (isinstance(cfg.stop_at, int) and cfg.stop_at > 0):
        raise ConfigError(f"stop_at={cfg.stop_at} must be at least 1, or null to go to the end")
    if cfg.max_hours is not None and not (isinstance(cfg.max_hours, (int, float)) and cfg.max_hours > 0):
        raise ConfigError(f"max_hours={cfg.max_hours} must be above 0, or null for no limit")
    if cfg.checkpoint_levels is not None and not (isinstance(cfg.checkpoint_levels, int) and cfg.checkpoint_levels > 0):
        raise ConfigError(f"checkpoint_levels={cfg.checkpoint_levels} must be at least 1, or null for all")
    if cfg.threads is not None and not (isinstance(cfg.threads, int) and cfg.threads > 0):
        raise ConfigError(f"threads={cfg.threads} must be at least 1, or null for all cores")
    if cfg.compile and not shutil.which(os.environ.get("CXX", "g++")):
        raise ConfigError("compile=true needs a C++ compiler (g++, or the one that CXX names), and there is none")
    if cfg.attention not in ATTENTION:
        raise ConfigError(f"attention={cfg.attention} is not known; choose from {', '.join(ATTENTION)}")
    at_once = cfg.micro_batch_size * num_processes
    if cfg.batch_size % at_once:
        nearest = sorted({max(1, cfg.batch_size // at_once) * at_once, (cfg.batch_size // at_once + 1) * at_once})
        raise ConfigError(
            f"batch_size={cfg.batch_size} is not a multiple of micro_batch_size={cfg.micro_batch_size} × "
            f"{num_processes} process{'es' if num_processes > 1 else ''}; try {' or '.join(map(str, nearest))}"
        )


def check_types(cfg: DictConfig, defaults: DictConfig) -> None:
    """Refuse a value of another type than the one in conf/ that it replaces: the YAML files are the schema."""
    for key, default in _leaves(defaults):
        value = OmegaConf.select(cfg, key)
        if isinstance(default, ListConfig):
            if value is not None and not isinstance(value, ListConfig):
                raise ConfigError(f"{key}={value} must be a list, such as [{value}]")
            continue
        wanted = next((name for kind, name in _KINDS if isinstance(default, kind)), None)
        if wanted and value is not None and not _fits(value, default):
            raise ConfigError(f"{key}={value} must be {wanted}, like the {default} in conf/")


_KINDS = ((bool, "true or false"), (int, "a whole number"), (float, "a number"), (str, "a text"))


def _fits(value: Any, default: Any) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return type(value) is type(default)
    if isinstance(default, int):
        return isinstance(value, int)
    return isinstance(value, (int, float) if isinstance(default, float) else (str, int, float))


def _leaves(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(node, DictConfig):
        return [(prefix, node)]
    return [
        leaf
        for key in node
        if not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key)  # which is checked once
        for leaf in _leaves(node[key], f"{prefix}.{key}".lstrip("."))
    ]
