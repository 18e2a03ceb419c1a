"""Settings that depend on the device: which values they may have."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from t2i.config import ConfigError

GRAPHS = ("reduce-overhead", "max-autotune")  # the modes of torch.compile that record CUDA graphs
AUTO = ("auto", True, False)
CHOICES: dict[str, tuple[Any, ...]] = {
    "compile": (True, False, *GRAPHS, "max-autotune-no-cudagraphs"),
    "channels_last": AUTO,
    "save_in_background": AUTO,
    "num_workers": ("auto",),  # or a number
}


def is_one_of(value: Any, choices: tuple[Any, ...]) -> bool:
    """Whether a value is among these; true is not 1."""
    return any(type(value) is type(choice) and value == choice for choice in choices)


def check_choices(cfg: DictConfig) -> None:
    """Refuse values that these settings can't have."""
    for key, choices in CHOICES.items():
        value = OmegaConf.select(cfg, key)
        if is_one_of(value, choices):
            continue
        if key == "num_workers":
            if not (type(value) is int and value >= 0):
                raise ConfigError(f"num_workers={_typed(value)} must be a whole number, at least 0, or auto")
            continue
        listed = ", ".join(map(_typed, choices))
        raise ConfigError(f"{key}={_typed(value)} must be one of {listed}")
    minutes = OmegaConf.select(cfg, "process_timeout")
    if type(minutes) not in (int, float) or not 0 < minutes < float("inf"):
        raise ConfigError(f"process_timeout={_typed(minutes)} must be a number of minutes above 0")


def check_graphs(cfg: DictConfig, num_processes: int) -> None:
    """Refuse CUDA graphs with accumulated gradients."""
    at_once = cfg.micro_batch_size * num_processes
    if cfg.compile in GRAPHS and cfg.batch_size != at_once:
        raise ConfigError(
            f"compile={cfg.compile} records CUDA graphs, in which the gradients of one micro-batch lie where those of "
            f"the next will; use compile=true, or batch_size={at_once} (micro_batch_size={cfg.micro_batch_size} × "
            f"{num_processes} processes)"
        )


def check_determinism(deterministic: bool, cudnn_benchmark: bool) -> None:
    if deterministic and cudnn_benchmark:
        raise ConfigError(
            "cudnn_benchmark=true lets each run choose its algorithms anew, which deterministic=true forbids; use one "
            "of them"
        )


def _typed(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
