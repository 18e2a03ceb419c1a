"""The components of a run, built from its configuration. All parts of t2i that train meet here."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from omegaconf import DictConfig
from torch.nn.utils import convert_conv2d_weight_memory_format

from t2i.config import ConfigError
from t2i.config.instantiate import build
from t2i.data.batches import Draws
from t2i.data.loader import Readable
from t2i.data.splits import Captioned, Split
from t2i.distributed import fsdp, processes
from t2i.evaluation.battery import Battery
from t2i.experiment.batteries import battery_facts, check_data, make_batteries
from t2i.experiment.class_images import load_data
from t2i.experiment.device import hardware
from t2i.experiment.image_evaluation import ImageEvaluation, make_image_evaluation
from t2i.experiment.optimization import set_up
from t2i.experiment.plan import Plan
from t2i.experiment.quantization_cost import cache_file, unquantized_errors
from t2i.experiment.reference_images import reference_images
from t2i.models.attention import recompute, set_attention
from t2i.models.base_adapters import adapter_facts
from t2i.models.compiling import compile_denoiser
from t2i.models.model import Model
from t2i.models.prompts import EmbeddedPrompts
from t2i.models.quantization import count_parameters
from t2i.runs import checkpoints
from t2i.runs.checkpoints import Stateful
from t2i.runs.folder import INFO, read_info
from t2i.training import memory
from t2i.training.meters import Meter
from t2i.training.step import Optimization, OptimizerStep


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What a run trains, measures and saves, ready to start."""

    cfg: DictConfig
    plan: Plan
    data: Captioned
    model: Model
    prompts: Sequence[str] | EmbeddedPrompts  # those of the samples
    optimization: Optimization
    take_step: OptimizerStep
    examples: Readable
    batteries: dict[str, Battery]  # by the prefix of their errors, the first the one that runs are judged by
    images: ImageEvaluation | None  # None: the model is not judged by its images while it trains
    judged_prompts: Sequence[str] | EmbeddedPrompts  # those of the image battery
    meter: Meter
    accelerator: Accelerator
    state: dict[str, Stateful]  # what a checkpoint holds
    unquantized: np.ndarray | None  # the battery's errors of the base before it was quantised, to tell the cost

    @property
    def battery(self) -> Battery:
        """The battery that runs are judged by."""
        return next(iter(self.batteries.values()))


def assemble(cfg: DictConfig, plan: Plan, folder: Path) -> Experiment:
    """Load the data set and the model, encode, and put together what the loop needs."""
    accelerator, layout = _launch(cfg, plan, folder)
    begun = read_info(folder) if (folder / INFO).is_file() else {}
    data = load_data(cfg, accelerator)
    check_data(cfg, data)
    if isinstance(data.train, Split):
        plan.adapter.words.refuse_unused(data.train.captions)
    reference = reference_images(cfg, accelerator)
    images = make_image_evaluation(cfg, plan.metrics, data) if cfg.evaluate_every else None
    torch.manual_seed(cfg.seed)  # for fresh weights: of model.pretrained=false, of adapters
    model = load_model(cfg, plan, processes.autocast(accelerator))
    model.to(accelerator.device)
    plan = replace(
        plan,
        diffusion=plan.diffusion.for_model(model.patch_size, model.mu),
        levels=plan.levels.as_begun(begun.get("battery", {})),
    )
    draws = Draws(
        num_timesteps=len(plan.diffusion),
        timesteps=plan.timesteps,
        caption_dropout=cfg.caption_dropout,
        noise_offset=cfg.noise_offset,
        input_perturbation=cfg.input_perturbation,
        seed=cfg.seed,
    )
    examples = data.train.examples(model, cfg.cache_dir, cfg.batch_size, draws)
    batteries = make_batteries(cfg, plan, data, reference, examples, model)
    prompts = model.prompts(cfg.samples.prompts if cfg.sample_every else [])  # to embed none, no encoder is read
    judged_prompts = model.prompts(images.battery.prompts if images else [])
    model.release()
    battery = next(iter(batteries.values()))
    unquantized = _unquantized(cfg, plan, model, battery, accelerator) if tells_cost(cfg, folder) else None
    if accelerator.device.type == "cpu":
        memory.keep_freed()

    model.denoiser.to(accelerator.device).train()
    training, state = set_up(cfg, plan, model, layout, accelerator)
    if accelerator.scaler is not None:  # fp16
        state["scaler"] = accelerator.scaler
    return Experiment(
        cfg=cfg,
        plan=plan,
        data=data,
        model=model,
        prompts=prompts,
        optimization=training.optimization,
        take_step=training.take_step,
        examples=examples,
        batteries=batteries,
        images=images,
        judged_prompts=judged_prompts,
        meter=training.meter,
        accelerator=accelerator,
        state=state,
        unquantized=unquantized,
    )


def tells_cost(cfg: DictConfig, folder: Path) -> bool:
    """Whether the run says what quantising its base costs: at its beginning, where it measures the base."""
    begins = checkpoints.newest(folder / "checkpoints") is None and cfg["from"].run is None
    return bool(cfg.model.get("quantize") and cfg.validation.quantization_cost and cfg.validate_every and begins)


def _unquantized(cfg: DictConfig, plan: Plan, model: Model, battery: Battery, accelerator: Accelerator) -> np.ndarray:
    """Measured while the quantised denoiser is not on the GPU yet."""
    plain = copy.deepcopy(cfg)
    plain.model.quantize, plain.compile = None, False
    file = cache_file(cfg, plan, model, battery)
    load = partial(load_model, plain, plan, processes.autocast(accelerator))
    return unquantized_errors(load, file, plan, battery, accelerator)


def _launch(cfg: DictConfig, plan: Plan, folder: Path) -> tuple[Accelerator, processes.Layout]:
    """Join the other processes, if there are any; returns also how they divide the network among themselves."""
    accelerator = plan.backend.start(plan.precision, cfg.process_timeout)
    layout: processes.Layout = processes.Replicated(accelerator)
    if accelerator.distributed_type == DistributedType.FSDP:
        switches = {
            "adapter.text_encoder": plan.adapter.text_encoder,
            "adapter.new_tokens": ", ".join(plan.adapter.words.begin_at),
            "model.quantize": cfg.model.get("quantize"),
        }
        switches |= {"compile": bool(cfg.compile), "channels_last": plan.channels_last}
        fsdp.check(accelerator.state.fsdp_plugin, plan.precision, cfg.optimizer._target_, switches)
        layout = fsdp.Sharded(accelerator)
    if any(other != str(folder) for other in gather_object([str(folder)])):
        raise ConfigError(f"the processes work in different folders, this one in {folder}; give them run=NAME")
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    return accelerator, layout


def load_model(cfg: DictConfig, plan: Plan, autocast: Callable[[Callable], Callable]) -> Model:
    """The model with everything that the configuration changes in it before training."""
    model: Model = build(cfg, "model")
    if plan.adapter.trains_text and not model.trains_text:
        setting = "adapter.text_encoder=true" if plan.adapter.text_encoder else "adapter.new_tokens"
        raise ConfigError(f"{setting}: this model's text encoders are too large to be trained; leave it out")
    frozen_or_rounded = plan.adapter.needs_pretrained or plan.precision.weights == "stochastic"
    model.hold(plan.precision.compute if frozen_or_rounded else torch.float32)
    plan.backend.check_model(model)
    set_attention(model.denoiser, plan.attention, plan.precision.dtype)
    if cfg.gradient_checkpointing:
        recompute(model.denoiser, cfg.checkpoint_levels)
    if plan.channels_last:
        convert_conv2d_weight_memory_format(model.denoiser, torch.channels_last)
    compile_denoiser(model.denoiser, cfg.compile)
    return plan.adapter.attach(model, autocast)


def describe(experiment: Experiment) -> dict[str, Any]:
    """What run.json says of the run's hardware, model, data, battery and weighting."""
    plan, data, accelerator = experiment.plan, experiment.data, experiment.accelerator
    return {
        "precision": plan.precision.name,
        "attention": plan.attention,
        "channels_last": plan.channels_last,
        **hardware(accelerator.device),
        **plan.backend.facts(accelerator),
        "threads": torch.get_num_threads(),
        "num_processes": accelerator.num_processes,
        "distributed": accelerator.distributed_type.value,
        "quantize": experiment.cfg.model.get("quantize"),
        "base_adapters": adapter_facts(experiment.cfg.model.get("adapters")),
        "parameters": count_parameters(experiment.model.denoiser),
        "trained_parameters": sum(weight.numel() for weight in experiment.optimization.trained.weights.values()),
        "pictures": {"train": data.train.images, "validation": len(data.validation)},
        "skipped": list(data.skipped),
        "data_fingerprint": experiment.examples.fingerprint,
        **battery_facts(experiment.batteries),
        "weighting": weighting_table(plan),
    }


def weighting_table(plan: Plan) -> dict[str, float]:
    """What the loss weighting does to the prediction's error; the mean is over the timesteps as they are drawn."""
    weight = plan.loss.scale(plan.diffusion.snr, plan.diffusion.x0_scale).numpy()
    return {
        "mean": float(plan.timesteps.probabilities(len(weight)) @ weight),
        "smallest": float(weight.min()),
        "largest": float(weight.max()),
        "zero_steps": int((weight == 0).sum()),
    }
