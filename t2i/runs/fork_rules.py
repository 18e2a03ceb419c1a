"""Which settings may differ between a run and the run that begins with its state."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from t2i.config import ConfigError
from t2i.config.keys import belongs, flat
from t2i.runs.changes import called, changes
from t2i.runs.folder import has_results
from t2i.runs.parentage import Parent, find_parent, find_run, split

NO_ADAPTER, NO_EMA = "t2i.models.lora.NoAdapter", "t2i.optim.ema.NoEMA"
FREE = ("adapter.dropout", "adapter.init", "model.max_sequence_length", "from", "steps")
# What a checkpoint's sums for the next line of metrics.jsonl depend on: they begin anew if it changes.
METERED = (
    *("loss", "error", "timesteps", "scheduler", "continuous_time", "dataset", "seed", "max_grad_norm"),
    *("caption_dropout", "noise_offset", "input_perturbation"),
)
LORA_FILE = "pytorch_lora_weights.safetensors"  # as Diffusers calls it
ALONE = "or take the weights alone, with from.only=weights"
ON_TOP = "or train a new adapter on the model with this one in it, with model.path={folder} instead of from"


class Rule(NamedTuple):
    """A setting that the state does not allow to change."""

    keys: tuple[str, ...]
    reason: str
    remedy: str = ALONE
    weights: bool = False  # whether the weights alone don't allow it, either


RULES = (
    Rule(("model",), "its weights are those of another model", "or begin without from", weights=True),
    *(  # adapter.alpha follows the rank, which is what was typed
        Rule((key,), "its weights are those of another adapter", ON_TOP, weights=True)
        for key in ("adapter.rank", "adapter")
    ),
    Rule(("optimizer._target_",), "another optimizer has another state"),
    Rule(("precision.weights",), "the weights are kept in another form"),
    Rule(("batch_size",), "the position in the data is counted in batches"),
    Rule(("scheduler._target_", "scheduler.prediction_type"), "the optimizer's state is that of another prediction"),
    Rule(("ema._target_",), "this average was not tracked from the start; ema=none goes on without any"),
)


def check_fork(parent: Parent, config: Mapping[str, Any]) -> dict[str, str]:
    """Refuse settings that contradict the parent's state; returns the changed settings, each with its description.

    config: of the new run, by dotted key.
    """
    changed = {key: text for key, text in changes(parent.config, dict(config)).items() if not belongs(key, ("from",))}
    _refuse_adapters_on_trained(parent, config)
    for rule in RULES:
        for key in [key for key in changed if belongs(key, rule.keys) and not belongs(key, FREE)]:
            if parent.only is not None and not rule.weights:
                continue
            if key == "ema._target_" and config[key] == NO_EMA:
                continue
            before = _typed(parent.config.get(key))
            raise ConfigError(
                f"{changed[key]} can't be changed from {parent.name} on ({rule.reason}); leave it at {before}, "
                f"{rule.remedy.format(folder=parent.folder)}"
            )
    if parent.only is None:
        _refuse_no_steps(parent, config)
    return changed


def _refuse_adapters_on_trained(parent: Parent, config: Mapping[str, Any]) -> None:
    before, now = (settings.get("adapter._target_") for settings in (parent.config, config))
    if before == now or before is None:
        return
    name = called(parent.folder)
    remedy = (
        f"to adapt what it has learned, use model.path={parent.folder}/model instead of from"
        if before == NO_ADAPTER
        else "leave the adapter as it is, or begin without from"
    )
    raise ConfigError(
        f"from={parent.asked}: {name} trained {_kind(before)}, and this run trains {_kind(now)}; {remedy}"
    )


def _kind(target: Any) -> str:
    return "all weights of the denoiser" if target == NO_ADAPTER else "adapters"


def _refuse_no_steps(parent: Parent, config: Mapping[str, Any]) -> None:
    """Steps are counted from the beginning of the trunk."""
    for key in ("steps", "stop_at"):
        last = config.get(key)
        if isinstance(last, int) and last <= parent.step:
            raise ConfigError(
                f"{key}={last} leaves nothing to train from {parent.name} on: steps are counted from the beginning of "
                f"that run; use {key}={2 * parent.step or 1000}, or an earlier checkpoint of it"
            )


def _typed(value: Any) -> str:
    return "null" if value is None else str(value)


def open_parent(cfg: DictConfig, folder: Path, again: bool = False) -> Parent | None:
    """What the run in `folder` begins with; None if it begins with no run, or goes on with its own checkpoints.

    again: see `find_parent`. Raises ConfigError where it can't begin so; nothing heavy is read.
    """
    settings = cfg["from"]
    asked = None if settings.run is None else str(settings.run)
    parent = find_parent(asked, settings.only, folder, again)
    if parent is None and asked is None:
        return None
    config = flat(OmegaConf.to_container(cfg, resolve=True))
    if parent is not None:
        check_fork(parent, config)
    elif find_run(split(asked)[0]) is None and not has_results(folder):
        _check_tool(asked, settings.only, config)
    return parent


def _check_tool(asked: str, only: str | None, config: Mapping[str, Any]) -> None:
    """Refuse weights of another tool that can't become those that the run trains."""
    adapted = config.get("adapter._target_") != NO_ADAPTER
    if only == "ema":
        raise ConfigError(f"from.only=ema: {asked} is no run of t2i and has no average; leave from.only out")
    if asked.endswith(".safetensors"):
        if not Path(asked).expanduser().is_file():
            raise ConfigError(f"from={asked}: there is no such file")
        if not adapted:
            raise ConfigError(
                f"from={asked}: LoRA weights belong to adapters, and adapter=none trains all of the denoiser; add "
                "adapter=lora, with the file's rank"
            )
    elif (file := Path(asked).expanduser() / LORA_FILE).is_file():
        raise ConfigError(
            f"from={asked} holds adapters; use from={file} with adapter=lora, or from=RUN of the run that trained them"
        )
    elif adapted:
        raise ConfigError(
            f"from={asked} is a pipeline, whose weights are frozen next to adapters; use model.path={asked} instead"
        )
