"""One experiment: build the components, train, evaluate, and leave a run folder behind."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from omegaconf import DictConfig

from t2i import validation
from t2i.captioned import Captioned
from t2i.components import build
from t2i.data import Examples, Order
from t2i.diffusion import Diffusion
from t2i.ema import EMA, NoEMA
from t2i.encoding import encode
from t2i.journal import journal
from t2i.losses import Weighting
from t2i.plan import Plan
from t2i.precision import MIXED_PRECISION, set_attention
from t2i.publishing import Publisher
from t2i.runs import Run
from t2i.sampling import sample
from t2i.tracking import NoTracker
from t2i.training import Observers, Schedule, train

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What the loop works on, under the names of its parameters."""

    schedule: Schedule
    model: Any  # a class of t2i.models
    diffusion: Diffusion
    loss: Weighting
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler
    ema: EMA | NoEMA
    examples: Examples
    accelerator: Accelerator


def run(cfg: DictConfig, plan: Plan, folder: Path, overrides: list[str]) -> float:
    """Train what `cfg` says in `folder`; returns the final val/loss."""
    run = Run(folder, cfg, writes=int(os.environ.get("RANK", 0)) == 0)
    if run.finished:
        log.info("%s is finished already; val/loss %.6f", folder, run.result)
        return run.result

    publisher = Publisher(**cfg.hub)
    if run.writes:
        publisher.check()
    with run.claimed():
        result = _run(cfg, plan, run, overrides)
    if run.writes:
        publisher.publish(folder)
    return result


def _run(cfg: DictConfig, plan: Plan, run: Run, overrides: list[str]) -> float:
    run.begin()
    try:
        parts, battery, facts = assemble(cfg, plan)
        run.refuse_changes(facts)
        run.update(**facts)
        is_main, device = parts.accelerator.is_main_process, parts.accelerator.device
        tracker = plan.tracker if is_main else NoTracker()
        with journal(run, tracker, cfg.sweep, overrides, cfg.steps) as records:

            def validate(step: int) -> dict[str, float]:
                metrics, errors = validation.evaluate(battery, parts.model, parts.diffusion, parts.ema, device)
                records.errors(step, battery, errors)
                return metrics

            def draw(step: int) -> None:
                if is_main:
                    with parts.ema.applied(), validation.evaluating(parts.model.denoiser):
                        pictures = sample(parts.model.pipeline(plan.scheduler), **cfg.samples)
                    records.pictures(step, cfg.samples.prompts, pictures)

            train(**vars(parts), observers=Observers(validate, draw, records.log), run=run)
            if is_main:
                plan.adapter.export(parts.model, plan.scheduler, parts.ema, run.folder / "model")
            run.end("finished", final=run.latest())
        log.info("finished: %s · val/loss %.5f", run.folder, run.result)
        return run.result
    except KeyboardInterrupt:
        run.end("interrupted")
        raise
    except BaseException as error:
        run.end("failed", error=f"{type(error).__name__}: {error}")
        raise


def assemble(cfg: DictConfig, plan: Plan) -> tuple[Parts, validation.Battery, dict[str, Any]]:
    """Load the data set and the model, encode, and put together what the loop needs; also what run.json says of it."""
    AcceleratorState._reset_state()  # an earlier job of the same process may have had another precision
    accelerator = Accelerator(mixed_precision=MIXED_PRECISION[plan.dtype])
    if cfg.threads:
        torch.set_num_threads(cfg.threads)

    data: Captioned = build(cfg, "dataset")
    torch.manual_seed(cfg.seed)  # for fresh weights: of model.pretrained=false, of adapters
    model = build(cfg, "model")
    set_attention(model.denoiser, plan.attention, plan.dtype)
    if cfg.gradient_checkpointing:
        model.denoiser.enable_gradient_checkpointing()
    if cfg.channels_last:
        model.denoiser.to(memory_format=torch.channels_last)
    model = plan.adapter.attach(model)
    for frozen in (model.vae, *model.text_encoders.values()):
        frozen.to(accelerator.device)
    train_set, held_out = (encode(split, model, cfg.cache_dir) for split in (data.train, data.validation))
    battery = validation.battery(held_out, data.validation.weights, plan.diffusion, **cfg.validation)

    model.denoiser.train()
    trained = [weight for weight in model.denoiser.parameters() if weight.requires_grad]
    optimizer = build(cfg, "optimizer")(trained)
    lr_scheduler = build(cfg, "lr_scheduler")(optimizer)
    model.denoiser, optimizer = accelerator.prepare(model.denoiser, optimizer)
    examples = Examples(
        encoded=train_set,
        order=Order(data.train.weights, cfg.seed),
        timesteps=plan.timesteps,
        num_timesteps=len(plan.diffusion),
        caption_dropout=cfg.caption_dropout,
        noise_offset=cfg.noise_offset,
        input_perturbation=cfg.input_perturbation,
        seed=cfg.seed,
    )
    schedule = Schedule(**{name: cfg[name] for name in Schedule.__dataclass_fields__})
    facts = {
        "precision": plan.dtype,
        "attention": plan.attention,
        "device": str(accelerator.device),
        "threads": torch.get_num_threads(),
        "num_processes": accelerator.num_processes,
        "parameters": sum(weight.numel() for weight in model.denoiser.parameters()),
        "trained_parameters": sum(weight.numel() for weight in trained),
        "pictures": {"train": len(data.train), "validation": len(data.validation)},
        "data_fingerprint": train_set.fingerprint,
        "battery": {"hash": battery.hash, "items": len(battery.x0), "timesteps": battery.t.tolist()},
        "weighting": weighting_table(plan),
    }
    parts = Parts(schedule, model, plan.diffusion, plan.loss, optimizer, lr_scheduler, plan.ema, examples, accelerator)
    return parts, battery, facts


def weighting_table(plan: Plan) -> dict[str, float]:
    """What the weighting does to the error of the prediction; the mean is that over the timesteps as they are drawn."""
    weight = plan.loss.scale(plan.diffusion.snr, plan.diffusion.x0_scale).numpy()
    return {
        "mean": float(plan.timesteps.probabilities(len(weight)) @ weight),
        "smallest": float(weight.min()),
        "largest": float(weight.max()),
        "zero_steps": int((weight == 0).sum()),
    }
