"""One experiment: build the components, train, evaluate, and leave a run folder behind."""

import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from omegaconf import DictConfig

from t2i.config import ConfigError
from t2i.config.instantiate import build
from t2i.data.batches import Draws
from t2i.data.latent_cache import encode
from t2i.data.loader import Readable
from t2i.data.splits import Captioned
from t2i.diffusion.losses import Weighting
from t2i.diffusion.process import Diffusion
from t2i.distributed import fsdp, processes
from t2i.evaluation.battery import Battery, battery, evaluate, evaluating
from t2i.models.attention import recompute, set_attention
from t2i.optim.ema import WeightAverage
from t2i.optim.precision import MIXED_PRECISION
from t2i.optim.trained_weights import TrainedWeights, hold_weights
from t2i.plan import Plan
from t2i.publishing.push import Publisher
from t2i.runs import checkpoints
from t2i.runs.checkpoints import Stateful
from t2i.runs.folder import Run
from t2i.sampling.images import sample
from t2i.tracking import NoTracker
from t2i.training import memory
from t2i.training.loop import Observers, Schedule, train
from t2i.training.recorder import journal
from t2i.training.signals import Interrupted, Stop

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What the loop works on, under the names of its parameters."""

    schedule: Schedule
    model: Any  # a class of t2i.models
    trained: TrainedWeights
    diffusion: Diffusion
    loss: Weighting
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler
    ema: WeightAverage
    examples: Readable
    accelerator: Accelerator
    state: dict[str, Stateful]  # what of these a checkpoint holds


def run(
    cfg: DictConfig, plan: Plan, folder: Path, overrides: list[str], choices: dict[str, str] | None = None
) -> float:
    """Train what `cfg` says in `folder`; returns the final val/loss.

    overrides, choices: the command line and the option of each group, for those who read the run folder.
    """
    run = Run(folder, cfg, writes=int(os.environ.get("RANK", 0)) == 0)
    publisher = Publisher(**cfg.hub)
    if run.finished:
        log.info("%s is finished already; val/loss %.6f", folder, run.result)
        if run.writes and "pushed" not in run.info:
            publisher.publish(folder)
        return run.result

    if run.writes:
        publisher.check()
    with run.claimed():
        run.begin(overrides=overrides, choices=choices or {})
        with Stop(cfg.max_hours) as stop:
            result = _run(cfg, plan, run, overrides, stop)
    if run.writes and run.finished:
        publisher.publish(folder)
    return result


def _run(cfg: DictConfig, plan: Plan, run: Run, overrides: list[str], stop: Stop) -> float:
    try:
        parts, fixed, facts = assemble(cfg, plan, run.folder)
        run.refuse_changes(facts)
        run.update(**facts)
        accelerator = parts.accelerator
        is_main = accelerator.is_main_process
        tracker = plan.tracker if is_main else NoTracker()
        checkpoint = checkpoints.newest(run.checkpoints)
        last_step = checkpoints.step_of(checkpoint) if checkpoint else -1
        with journal(run, tracker, cfg.sweep, overrides, cfg.steps, last_step) as records:

            def validate(step: int) -> dict[str, float]:
                metrics, errors = evaluate(fixed, parts.model, parts.diffusion, parts.ema, accelerator)
                records.errors(step, fixed, errors)
                return metrics

            def draw(step: int) -> None:
                mine = processes.assigned(range(len(cfg.samples.prompts)), accelerator)
                with parts.ema.applied(), evaluating(parts.model.denoiser):
                    images = sample(parts.model.pipeline(plan.scheduler), **cfg.samples, places=mine)
                images = dict(gather_object(list(zip(mine, images, strict=True))))
                if is_main:
                    records.images(step, cfg.samples.prompts, [images[place] for place in sorted(images)])

            observers = Observers(validate, draw, records.log, partial(_agreed, stop, accelerator))
            stop.patient = True
            done = train(**vars(parts), observers=observers, run=run, checkpoint=checkpoint)
            stop.patient = False
            if stop.signum is not None and done < parts.schedule.steps:
                raise Interrupted(stop.signum)
            if done == parts.schedule.steps:
                exported = (parts.model, plan.scheduler, parts.trained, parts.ema)
                plan.adapter.export(*exported, run.folder / "model", is_main)
                run.end("finished", final=run.latest())
            else:
                run.end("paused", paused_at=done, final=run.latest())
        log.info("%s: %s · val/loss %.5f", run.info["state"], run.folder, run.result)
        return run.result
    except KeyboardInterrupt:
        run.end("interrupted")
        raise
    except BaseException as error:
        exhausted = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)  # GPU, CPU
        with suppress(OSError):  # a full disk
            run.end("failed", error=f"{'out of memory' if exhausted else type(error).__name__}: {error}")
        if not exhausted:
            raise
        raise ConfigError(
            f"out of memory ({str(error).splitlines()[0]}); what helps: a smaller micro_batch_size (the result is the "
            "same), gradient_checkpointing=true, precision=bf16, or bf16_sr for a new run"
        ) from error


def _agreed(stop: Stop, accelerator: Accelerator) -> bool:
    """Whether any process was asked to stop: all stop at the same step."""
    asked = stop()
    if accelerator.num_processes > 1:
        asked = bool(accelerator.reduce(torch.tensor(float(asked), device=accelerator.device)) > 0)
    return asked


def assemble(cfg: DictConfig, plan: Plan, folder: Path) -> tuple[Parts, Battery, dict[str, Any]]:
    """Load the data set and the model, encode, and put together what the loop needs; also what run.json says of it."""
    accelerator = processes.start(MIXED_PRECISION[plan.precision.dtype])
    layout = processes.Replicated(accelerator)
    if accelerator.distributed_type == DistributedType.FSDP:
        switches = {"adapter.text_encoder": plan.adapter.text_encoder}
        switches |= {name: cfg[name] for name in ("compile", "channels_last")}
        fsdp.check(accelerator.state.fsdp_plugin, plan.precision, cfg.optimizer._target_, switches)
        layout = fsdp.Sharded(accelerator)
    if any(other != str(folder) for other in gather_object([str(folder)])):
        raise ConfigError(f"the processes work in different folders, this one in {folder}; give them run=NAME")
    if cfg.threads:
        torch.set_num_threads(cfg.threads)

    data: Captioned = build(cfg, "dataset")
    torch.manual_seed(cfg.seed)  # for fresh weights: of model.pretrained=false, of adapters
    model = build(cfg, "model")
    set_attention(model.denoiser, plan.attention, plan.precision.dtype)
    if cfg.gradient_checkpointing:
        recompute(model.denoiser, cfg.checkpoint_levels)
    if cfg.channels_last:
        model.denoiser.to(memory_format=torch.channels_last)
    if cfg.compile:
        model.denoiser.compile()
    model = plan.adapter.attach(model, processes.autocast(accelerator))
    model.to(accelerator.device)
    draws = Draws(
        num_timesteps=len(plan.diffusion),
        timesteps=plan.timesteps,
        caption_dropout=cfg.caption_dropout,
        noise_offset=cfg.noise_offset,
        input_perturbation=cfg.input_perturbation,
        seed=cfg.seed,
    )
    examples = data.train.examples(model, cfg.cache_dir, cfg.batch_size, draws)
    held_out = encode(data.validation, model, cfg.cache_dir)
    model.release()
    if accelerator.device.type == "cpu":
        memory.keep_freed()
    fixed = battery(held_out, data.validation.weights, plan.diffusion, **cfg.validation)

    model.denoiser.to(accelerator.device).train()
    trained = hold_weights(model.denoiser, plan.precision)
    optimizer = build(cfg, "optimizer")(list(trained.weights.values()))
    trained.attach(optimizer)
    lr_scheduler = build(cfg, "lr_scheduler")(optimizer)
    trained, prepared = layout.prepare(model, trained, optimizer)
    plan.ema.track(trained, optimizer)
    state = layout.checkpoint_state(prepared, denoiser=trained, lr_scheduler=lr_scheduler, ema=plan.ema)
    if accelerator.scaler is not None:  # fp16
        state["scaler"] = accelerator.scaler
    schedule = Schedule(**{name: cfg[name] for name in Schedule.__dataclass_fields__})
    facts = {
        "precision": plan.precision.name,
        "attention": plan.attention,
        "device": str(accelerator.device),
        "threads": torch.get_num_threads(),
        "num_processes": accelerator.num_processes,
        "distributed": accelerator.distributed_type.value,
        "parameters": sum(weight.numel() for weight in model.denoiser.parameters()),
        "trained_parameters": sum(weight.numel() for weight in trained.weights.values()),
        "pictures": {"train": data.train.images, "validation": len(data.validation)},
        "skipped": list(data.skipped),
        "data_fingerprint": examples.fingerprint,
        "battery": {
            "hash": fixed.hash,
            "items": len(fixed.x0),
            "timesteps": fixed.t.tolist(),
            "snr": plan.diffusion.snr[fixed.t].tolist(),
        },
        "weighting": weighting_table(plan),
    }
    parts = Parts(
        schedule, model, trained, plan.diffusion, plan.loss, prepared, lr_scheduler, plan.ema, examples, accelerator,
        state,
    )  # fmt: skip
    return parts, fixed, facts


def weighting_table(plan: Plan) -> dict[str, float]:
    """What the weighting does to the error of the prediction; the mean is that over the timesteps as they are drawn."""
    weight = plan.loss.scale(plan.diffusion.snr, plan.diffusion.x0_scale).numpy()
    return {
        "mean": float(plan.timesteps.probabilities(len(weight)) @ weight),
        "smallest": float(weight.min()),
        "largest": float(weight.max()),
        "zero_steps": int((weight == 0).sum()),
    }
