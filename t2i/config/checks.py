"""Which values a configuration may have: checked before anything heavy is imported."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from t2i.config import ConfigError
from t2i.config.device_settings import CHOICES, check_choices, check_determinism, check_graphs, is_one_of
from t2i.config.folds import check_folds
from t2i.config.keys import belongs

AT_LEAST = {
    "seed": 0,
    "steps": 0,
    "batch_size": 1,
    "micro_batch_size": 1,
    "max_grad_norm": 0,
    "max_bad_steps": 1,
    "caption_dropout": 0,
    "noise_offset": 0,
    "input_perturbation": 0,
    "log_every": 0,
    "validate_every": 0,
    "sample_every": 0,
    "evaluate_every": 0,
    "save_every": 0,
    "validation.items": 1,
    "validation.train_items": 0,
    "validation.reference_items": 1,
    "validation.timesteps": 1,
    "validation.seed": 0,
    "samples.steps": 1,
    "samples.seed": 0,
    "evaluation.items": 1,
    "evaluation.steps": 1,
}
FRACTIONAL = ("max_grad_norm", "caption_dropout", "noise_offset", "input_perturbation")  # the others are whole
POSITIVE_OR_NULL = {  # key -> the type, the bound, and what null means
    "early_stop.patience": (int, "at least 1", "to go to the end"),
    "stop_at": (int, "at least 1", "to go to the end"),
    "max_hours": ((int, float), "above 0", "for no limit"),
    "checkpoint_levels": (int, "at least 1", "for all"),
    "threads": (int, "at least 1", "for all cores"),
    "evaluation.size": (int, "at least 1", "for what the pipeline was made for"),
}
FIXED = {  # the tables that are not components -> their settings
    "evaluation": ("prompts", "column", "items", "seeds", "steps", "guidance_scale", "size", "sampler", "clip"),
    "early_stop": ("patience", "metric"),
    "export": ("lora", "single_file"),
    "from": ("run", "only"),
    "hub": ("push", "repo", "private", "license"),
    "precision": ("dtype", "weights"),
    "samples": ("prompts", "seed", "steps", "guidance_scale", "size"),
    "validation": (
        *("seed", "items", "timesteps", "images", "train_items", "reference", "folds", "fold", "log_snr"),
        *("reference_items", "quantization_cost"),
    ),
}
NEEDED = {  # further settings that can't be null -> what they must be
    **dict.fromkeys(("continuous_time", "gradient_checkpointing"), bool),
    **dict.fromkeys(("tf32", "cudnn_benchmark", "deterministic"), bool),
    **dict.fromkeys(("hub.push", "hub.private", "validation.quantization_cost", "export.single_file"), bool),
    **dict.fromkeys(("attention", "cache_dir", "precision.dtype", "precision.weights"), str),
    **dict.fromkeys(("validation.images", "early_stop.metric"), str),
    **dict.fromkeys(("samples.guidance_scale", "evaluation.guidance_scale"), (int, float)),
}
OPEN = ("dataset.groups", "metric")  # tables whose entries are free
LARGEST_SEED = 2**63 - 1
SEEDS = ("seed", "validation.seed", "samples.seed")
ALSO = {"keep_checkpoints": ("all",), **CHOICES}  # values of another type than the default's
ONLY = ("weights", "ema")  # what from.only can take of a run
TYPES = ((bool, "true or false"), (int, "a whole number"), (float, "a number"), (str, "a text"))


def check(cfg: DictConfig, num_processes: int) -> None:
    """Refuse values out of range and settings that contradict each other."""
    check_fixed(cfg)
    for key, least in AT_LEAST.items():
        value, number = OmegaConf.select(cfg, key), "a number" if key in FRACTIONAL else "a whole number"
        if isinstance(value, bool) or not isinstance(value, (int, float) if key in FRACTIONAL else int):
            raise ConfigError(f"{key}={_shown(value)} must be {number}, at least {least}")
        if not value >= least:
            raise ConfigError(f"{key}={value} must be at least {least}")
    check_seeds({key: OmegaConf.select(cfg, key) for key in SEEDS})
    for key, (kind, bound, null) in POSITIVE_OR_NULL.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and not (isinstance(value, kind) and value > 0):
            raise ConfigError(f"{key}={value} must be {bound}, or null {null}")
    _check_checkpoints(cfg)
    _check_from(cfg["from"])
    if cfg.caption_dropout > 1:
        raise ConfigError(f"caption_dropout={cfg.caption_dropout} is a fraction of the captions: at most 1")
    _check_log_snr(cfg.validation.log_snr)
    check_evaluation(cfg.evaluation)
    check_folds(cfg)
    if not cfg.samples.prompts:
        raise ConfigError("samples.prompts is empty; to generate no samples, use sample_every=0")
    check_graphs(cfg, num_processes)
    check_determinism(cfg.deterministic, cfg.cudnn_benchmark)
    if cfg.compile and not shutil.which(os.environ.get("CXX", "g++")):
        raise ConfigError(
            "compile needs a C++ compiler (g++, or the one that CXX names), and there is none; use compile=false"
        )
    check_batch_size(cfg.batch_size, cfg.micro_batch_size, num_processes)


def check_seeds(seeds: Mapping[str, int]) -> None:
    """Refuse seeds that PyTorch's generators do not take."""
    for key, seed in seeds.items():
        if not 0 <= seed <= LARGEST_SEED:
            raise ConfigError(f"{key}={seed} must be from 0 to {LARGEST_SEED} (2^63 - 1)")


def check_fixed(cfg: DictConfig) -> None:
    """Refuse settings of the tables that are not components if they are unknown, and null where a value is needed."""
    for table, names in FIXED.items():
        node = OmegaConf.select(cfg, table)
        if not isinstance(node, DictConfig):
            raise ConfigError(f"{table}={_shown(node)} must be a table with {', '.join(names)}")
        for name in node:
            if name not in names:
                raise ConfigError(f"{table}.{name} is not a setting; {table} has {', '.join(names)}")
    for key, kind in NEEDED.items():
        value = OmegaConf.select(cfg, key)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            wanted = "true or false" if kind is bool else "a text" if kind is str else "a number"
            raise ConfigError(f"{key}={_shown(value)} must be {wanted}")
    check_choices(cfg)
    prompts = OmegaConf.select(cfg, "samples.prompts")
    if not isinstance(prompts, ListConfig) or not _texts(prompts):
        raise ConfigError(f"samples.prompts={_shown(prompts)} must be a list of texts")


def _check_checkpoints(cfg: DictConfig) -> None:
    keep, steps = cfg.keep_checkpoints, cfg.keep_at
    if keep != "all" and not _is_whole(keep, least=1):
        problem = "must be at least 1" if _is_whole(keep, least=-(10**9)) else "must be a whole number, at least 1"
        raise ConfigError(f"keep_checkpoints={_shown(keep)} {problem}, or all")
    if not isinstance(steps, ListConfig) or not all(_is_whole(step, least=1) for step in steps):
        raise ConfigError(f"keep_at={_shown(steps)} must be a list of steps from 1 on, such as [1000,2000]")


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _check_from(node: DictConfig) -> None:
    """Refuse what begins with nothing, and what can't be taken."""
    if not (node.run is None or (isinstance(node.run, str | int | float) and str(node.run).strip())):
        raise ConfigError(
            f"from.run={_shown(node.run)} must be a run, a LoRA file or a pipeline, such as from=base@1000"
        )
    if node.only not in (None, *ONLY):
        raise ConfigError(f"from.only={node.only} is not known; choose from {', '.join(ONLY)}, or null to take all")
    if node.only is not None and node.run is None:
        raise ConfigError(f"from.only={node.only} says what to take, but not of what; add from=RUN")


def _shown(value: Any) -> Any:
    """A value as it is written on the command line."""
    return "null" if value is None else value


def _check_log_snr(log_snr: ListConfig | None) -> None:
    if log_snr is None:
        return
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in log_snr)
    if not (len(log_snr) == 2 and numbers and log_snr[0] < log_snr[1]):
        raise ConfigError(
            f"validation.log_snr={log_snr} must be two numbers, the lower first, such as [-5,5]; null for timesteps"
        )


def check_evaluation(evaluation: DictConfig) -> None:
    """Refuse prompts, seeds and names of other types than the image battery takes."""
    prompts, seeds = evaluation.prompts, evaluation.seeds
    if not (prompts is None or isinstance(prompts, str) or (isinstance(prompts, ListConfig) and _texts(prompts))):
        raise ConfigError(
            f"evaluation.prompts={prompts} must be a list of texts, a file, a data set of the Hub, or null for "
            "held-out captions"
        )
    for name in ("column", "sampler", "clip"):
        if not isinstance(evaluation[name], str | None):
            raise ConfigError(f"evaluation.{name}={evaluation[name]} must be a text, or null")
    whole = isinstance(seeds, ListConfig) and all(type(seed) is int and 0 <= seed <= LARGEST_SEED for seed in seeds)
    if not whole or not len(seeds) or len(set(seeds)) < len(seeds):
        raise ConfigError(f"evaluation.seeds={seeds} must be a list of different whole numbers, such as [0,1]")


def _texts(values: ListConfig) -> bool:
    return all(isinstance(value, str) for value in values)


def check_types(cfg: DictConfig, defaults: DictConfig) -> None:
    """Refuse a value of another type than the one in conf/ that it replaces: the YAML files are the schema."""
    for key, default in _leaves(defaults):
        value = OmegaConf.select(cfg, key)
        if value is None:
            _refuse_deletion(cfg, key, default)
            continue
        if is_one_of(value, ALSO.get(key, ())):
            continue
        if isinstance(default, ListConfig):
            if not isinstance(value, ListConfig):
                raise ConfigError(f"{key}={value} must be a list, such as [{value}]")
            continue
        wanted = next((name for kind, name in TYPES if isinstance(default, kind)), None)
        if wanted and not _fits(value, default):
            raise ConfigError(f"{key}={value} must be {wanted}, like the {default} in conf/")


def _refuse_deletion(cfg: DictConfig, key: str, default: Any) -> None:
    table, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, table) if table else cfg
    if isinstance(node, DictConfig) and name not in node and not belongs(key, OPEN):
        raise ConfigError(f"~{key}: a setting can't be taken away; give it another value, such as {key}={default}")


def check_permissions(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse permissions that a file has given itself: `overrides`, which were typed, must have given them.

    What is compared is not resolved, as an interpolation may lead to something else when it is resolved again.
    """
    content = OmegaConf.to_container(cfg, resolve=False)
    dataset = content.get("dataset") if isinstance(content, dict) else None
    given = {
        "allowed_targets": content.get("allowed_targets") if isinstance(content, dict) else None,
        "dataset.follow_links": dataset.get("follow_links") if isinstance(dataset, dict) else dataset,
        "from.run": _run_of(content.get("from") if isinstance(content, dict) else None),
    }
    typed = {override.lstrip("+").partition("=")[0] for override in overrides}
    for key, value in given.items():
        if value and key not in typed and not (key == "from.run" and "from" in typed):
            raise ConfigError(f"{key}={value} comes from a file; it counts on the command line only")


def _run_of(node: Any) -> Any:
    return node.get("run") if isinstance(node, dict) else node


def check_batch_size(batch_size: int, micro_batch_size: int, num_processes: int) -> None:
    """Refuse batches that the processes can't divide into equal micro-batches."""
    at_once = micro_batch_size * num_processes
    if batch_size % at_once:
        fewer = batch_size // at_once
        nearest = sorted({max(1, fewer) * at_once, (fewer + 1) * at_once})
        raise ConfigError(
            f"batch_size={batch_size} is not a multiple of micro_batch_size={micro_batch_size} × "
            f"{num_processes} process{'es' if num_processes > 1 else ''}; try {' or '.join(map(str, nearest))}"
        )


def _fits(value: Any, default: Any) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return type(value) is type(default)
    if isinstance(default, int):
        return isinstance(value, int)
    return isinstance(value, (int, float) if isinstance(default, float) else (str, int, float))


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(node, DictConfig):
        yield prefix, node
        return
    for key in node:
        if not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):  # checked where it leads
            yield from _leaves(node[key], f"{prefix}.{key}".lstrip("."))
