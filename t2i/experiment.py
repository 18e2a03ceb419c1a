"""One experiment: build every component from the configuration, train, evaluate, and leave a run folder behind."""

import logging
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from omegaconf import DictConfig

from t2i import validation
from t2i.components import build, check_signatures
from t2i.data import Captioned, Examples, Order
from t2i.diffusion import Diffusion
from t2i.encoding import encode
from t2i.journal import journal
from t2i.precision import MIXED_PRECISION, resolve_precision, set_attention
from t2i.runs import Run
from t2i.sampling import sample
from t2i.training import Observers, Schedule, train

log = logging.getLogger(__name__)


def run(cfg: DictConfig, folder: Path, overrides: list[str]) -> float:
    """Train what `cfg` says in `folder`; returns the final val/loss.

    What can be wrong with the configuration is found before the data set and the weights are loaded.
    """
    check_signatures(cfg)
    dtype = resolve_precision(cfg.precision.dtype)
    loss, timesteps, ema, tracker = (build(cfg, name) for name in ("loss", "timesteps", "ema", "tracker"))
    scheduler = build(cfg, "scheduler")
    diffusion = Diffusion.from_scheduler(scheduler)
    loss.prepare(diffusion, timesteps.probabilities(len(diffusion)))
    run = Run(folder, cfg, writes=int(os.environ.get("RANK", 0)) == 0)
    if run.finished:
        log.info("%s is finished already; val/loss %.6f", folder, run.result)
        return run.result

    run.begin()
    try:
        AcceleratorState._reset_state()  # an earlier job of the same process may have had another precision
        accelerator = Accelerator(mixed_precision=MIXED_PRECISION[dtype])
        if cfg.threads:
            torch.set_num_threads(cfg.threads)
        data: Captioned = build(cfg, "dataset")
        torch.manual_seed(cfg.seed)  # only for the fresh weights of model.pretrained=false
        model = build(cfg, "model")
        model.vae.to(accelerator.device)
        model.text_encoder.to(accelerator.device)
        train_set, held_out = (encode(split, model, cfg.cache_dir) for split in (data.train, data.validation))
        battery = validation.battery(held_out, diffusion, **cfg.validation)
        attention = set_attention(model.denoiser, cfg.attention, dtype)
        if cfg.gradient_checkpointing:
            model.denoiser.enable_gradient_checkpointing()
        if cfg.channels_last:
            model.denoiser.to(memory_format=torch.channels_last)
        model.denoiser.train()
        optimizer = build(cfg, "optimizer")(model.denoiser.parameters())
        lr_scheduler = build(cfg, "lr_scheduler")(optimizer)
        model.denoiser, optimizer = accelerator.prepare(model.denoiser, optimizer)
        order = Order(data.train.weights, cfg.seed)
        examples = Examples(
            train_set,
            order,
            len(diffusion),
            timesteps,
            cfg.caption_dropout,
            cfg.noise_offset,
            cfg.input_perturbation,
            cfg.seed,
        )
        schedule = Schedule(**{name: cfg[name] for name in Schedule.__dataclass_fields__})
        run.update(
            precision=dtype,
            attention=attention,
            device=str(accelerator.device),
            threads=torch.get_num_threads(),
            num_processes=accelerator.num_processes,
            parameters=sum(weight.numel() for weight in model.denoiser.parameters()),
            pictures={"train": len(data.train), "validation": len(data.validation)},
            data_fingerprint=train_set.fingerprint,
            battery={"hash": battery.hash, "items": len(battery.x0), "timesteps": battery.t.tolist()},
            weighting=weighting_table(loss, diffusion),
        )
        with journal(run, tracker, cfg.sweep, overrides, schedule.steps, accelerator.is_main_process) as records:

            def validate(step: int) -> dict[str, float]:
                metrics, errors = validation.evaluate(battery, model, diffusion, ema, accelerator.device)
                records.errors(step, battery, errors)
                return metrics

            def draw(step: int) -> None:
                if accelerator.is_main_process:
                    with ema.applied():
                        pipeline = model.pipeline(scheduler)
                        records.pictures(step, cfg.samples.prompts, sample(pipeline, **cfg.samples))

            observers = Observers(validate, draw, records.log)
            train(schedule, model, diffusion, loss, optimizer, lr_scheduler, ema, examples, accelerator, observers, run)
            if accelerator.is_main_process:
                export(model, scheduler, ema, folder / "model")
            run.end("finished", final=records.last)
        return run.result
    except KeyboardInterrupt:
        run.end("interrupted")
        raise
    except BaseException as error:
        run.end("failed", error=f"{type(error).__name__}: {error}")
        raise


def export(model, scheduler, ema, folder: Path) -> None:
    """A complete Diffusers pipeline with the averaged weights, and the raw ones beside them as variant `non_ema`.

    The scheduler is the one trained with: without its prediction type the samples would be noise.
    """
    with ema.applied():
        model.pipeline(scheduler).save_pretrained(folder)
    if len(ema.variants()) > 1:
        model.pipeline(scheduler).unet.save_pretrained(folder / "unet", variant="non_ema")


def weighting_table(loss, diffusion: Diffusion) -> dict[str, float]:
    """What the weighting does to the error of the prediction, over all timesteps."""
    weight = loss.scale(diffusion.snr, diffusion.x0_scale)
    return {
        "mean": float(weight.mean()),
        "smallest": float(weight.min()),
        "largest": float(weight.max()),
        "zero_steps": int((weight == 0).sum()),
    }
