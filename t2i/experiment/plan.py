"""The components that are cheap to build. Building them finds every contradiction in a configuration.

This module imports nothing heavier than torch and Diffusers' schedulers, so that a mistake is reported within seconds.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig

from t2i.backends.backend import Backend
from t2i.config import ConfigError
from t2i.config.checks import check_fixed
from t2i.config.instantiate import build, build_all, check_settings, check_signature, check_targets, naming, target_of
from t2i.config.model_size import check_resolution
from t2i.diffusion.losses import Weighting
from t2i.diffusion.process import Diffusion
from t2i.diffusion.timesteps import Continuous, Distribution
from t2i.evaluation.image_metrics.metric import ImageMetric
from t2i.evaluation.noise_levels import NoiseLevels, choose_levels
from t2i.experiment.reference import check_reference
from t2i.models.adapter import Adapter
from t2i.models.attention import resolve_attention
from t2i.models.base_adapters import parse_adapters
from t2i.models.base_vae import check_vae
from t2i.models.quantization import check_quantize
from t2i.models.single_file_base import check_kind
from t2i.optim.ema import NoEMA, WeightAverage
from t2i.optim.precision import Precision
from t2i.optim.trained_weights import hold_weights
from t2i.runs.at_start import AtStart
from t2i.tracking import Tracker
from t2i.training.early_stop import EarlyStop, early_stop_of

ANEW = AtStart()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cheap components of a run."""

    backend: Backend
    precision: Precision
    attention: str  # sdpa, math, by_size or xformers
    channels_last: bool
    loss: Weighting
    timesteps: Distribution
    ema: WeightAverage
    adapter: Adapter
    tracker: Tracker
    scheduler: Any  # of Diffusers
    diffusion: Diffusion
    levels: NoiseLevels  # of the battery
    metrics: dict[str, ImageMetric]  # of the images of evaluate_every; none if it is 0
    early_stop: EarlyStop


def make_plan(cfg: DictConfig, begun: AtStart = ANEW) -> Plan:
    """Build the cheap components, cheapest first. Raises ConfigError for settings that can't work.

    begun: with what the run began that goes on, perhaps on another device; settings that are `auto` keep it.
    """
    check_targets(cfg)
    check_fixed(cfg)
    _check_base(cfg)
    check_signature(cfg, "backend")
    backend: Backend = build(cfg, "backend")
    kept = (begun.precision or "auto").removesuffix("_sr")
    dtype = kept if cfg.precision.dtype == "auto" else cfg.precision.dtype
    precision = backend.precision(dtype, cfg.precision.weights)
    attention = resolve_attention(cfg.attention, precision.dtype)
    for group in ("error", "loss", "timesteps", "ema", "adapter", "tracker", "scheduler"):
        check_signature(cfg, group)
    loss, timesteps, ema, adapter, tracker, scheduler = (
        build(cfg, group) for group in ("loss", "timesteps", "ema", "adapter", "tracker", "scheduler")
    )
    if adapter.needs_pretrained and not cfg.model.pretrained:
        raise ConfigError("model.pretrained=false leaves no base to adapt; use adapter=none, or pretrained weights")
    _check_quantize(cfg, adapter)
    with naming("scheduler"):
        diffusion = Diffusion.from_scheduler(scheduler, cfg.continuous_time)
    if diffusion.continuous:
        timesteps = Continuous(timesteps)
    by_length = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
    try:
        copy.deepcopy(scheduler).set_timesteps(2, **by_length)
    except Exception as error:  # its settings are of any kind
        raise ConfigError(f"scheduler: this scheduler can't sample ({' '.join(str(error).split())})") from error
    with naming("timesteps"):
        probabilities = timesteps.probabilities(len(diffusion))
    with naming("loss"):
        loss.prepare(diffusion, probabilities)
    backend.check(_for_backend(cfg, adapter, loss))
    return Plan(
        backend=backend,
        precision=precision,
        attention=attention,
        channels_last=_channels_last(cfg, backend, precision, begun),
        loss=loss,
        timesteps=timesteps,
        ema=ema,
        adapter=adapter,
        tracker=tracker,
        scheduler=scheduler,
        diffusion=diffusion,
        early_stop=early_stop_of(cfg, averages=not isinstance(ema, NoEMA)),
        levels=choose_levels(diffusion, cfg.validation.timesteps, cfg.validation.log_snr),
        metrics=_metrics(cfg),
    )


def _channels_last(cfg: DictConfig, backend: Backend, precision: Precision, begun: AtStart) -> bool:
    """The layout of convolutions. Optimizers of bitsandbytes lay weights out with the channels first in their first
    step, so that a run that goes on would begin in another layout than it had.
    """
    if not target_of(cfg, "optimizer").__module__.startswith("bitsandbytes."):
        return backend.channels_last(cfg.channels_last, precision.dtype, begun.channels_last)
    if cfg.channels_last is True:
        raise ConfigError("channels_last=true: bitsandbytes lays weights out with the channels first; leave it out")
    return False


def _for_backend(cfg: DictConfig, adapter: Adapter, loss: Weighting) -> dict[str, Any]:
    """What a backend may refuse, by the names of the settings."""
    switches = {f"adapter.{name}": getattr(adapter, name, None) for name in ("text_encoder", "dora", "dropout")}
    return {
        **{name: cfg[name] for name in ("attention", "compile", "micro_batch_size", "num_workers")},
        **{name: cfg[name] for name in ("tf32", "cudnn_benchmark", "deterministic")},
        "channels_last": cfg.channels_last not in ("auto", False),
        **switches,
        "adapter.new_tokens": ", ".join(adapter.words.begin_at),
        "model": cfg.model._target_,
        "optimizer": target_of(cfg, "optimizer"),
        "adapter": adapter,
        "loss": loss,
    }


def _metrics(cfg: DictConfig) -> dict[str, ImageMetric]:
    """The metrics of images, if there will be images; raises ConfigError if a network of theirs is missing."""
    if not cfg.evaluate_every:
        return {}
    metrics = build_all(cfg, "metric")
    for name, metric in metrics.items():
        with naming(f"metric.{name}"):
            metric.check()
    return metrics


def _check_quantize(cfg: DictConfig, adapter: Adapter) -> None:
    quantize = cfg.model.get("quantize")
    check_quantize(quantize, cfg.model.pretrained)
    if quantize and not adapter.quantizable:
        why = "computes with the weights themselves" if adapter.needs_pretrained else "trains all of them"
        raise ConfigError(
            f"model.quantize={quantize} holds frozen weights in few bits, and this adapter {why}; use adapter=lora or "
            "dora, or model.quantize=null"
        )


def check_the_rest(cfg: DictConfig) -> None:
    """Refuse settings that the data set, model or optimizer does not accept, before anything is loaded."""
    for group in ("optimizer", "lr_scheduler", "dataset", "model"):
        check_signature(cfg, group)
    check_settings(cfg, "dataset")
    check_resolution(cfg)
    check_reference(cfg)
    optimizer = target_of(cfg, "optimizer")
    rounds = getattr(optimizer, "rounds_stochastically", False) or cfg.optimizer.get("bf16_stochastic_round")
    if cfg.precision.weights == "stochastic" and not rounds:
        raise ConfigError(
            f"precision.weights=stochastic: {cfg.optimizer._target_} rounds to nearest, which loses small updates; "
            "use optimizer=adamw_sr, or precision=bf16"
        )
    rehearse(cfg)


def _check_base(cfg: DictConfig) -> None:
    """Refuse adapters and autoencoders that are not there, and a single file of another kind of model."""
    check_kind(str(cfg.model.get("path")), (cfg.get("made_for") or {}).get("pipelines", ()))
    adapters = parse_adapters(cfg.model.get("adapters"))
    if adapters and not cfg.model.pretrained:
        raise ConfigError(
            "model.adapters: model.pretrained=false leaves no weights to merge into; use pretrained weights, or []"
        )
    if vae := cfg.model.get("vae"):
        check_vae(str(vae))


def rehearse(cfg: DictConfig) -> None:
    """Build optimizer, learning-rate schedule and average for one dummy weight, so that bad settings fail now."""
    trained = hold_weights(torch.nn.Linear(1, 1, bias=False))
    make_optimizer, make_schedule, average = (build(cfg, group) for group in ("optimizer", "lr_scheduler", "ema"))
    with naming("optimizer"):
        optimizer = make_optimizer(list(trained.weights.values()))
        if type(optimizer).__module__.startswith("torch.optim"):  # others may need a GPU to take a step
            for weight in trained.weights.values():
                weight.grad = torch.zeros_like(weight)
            optimizer.step()
    with naming("lr_scheduler"):
        make_schedule(optimizer)
    with naming("ema"):
        average.track(trained, optimizer)
