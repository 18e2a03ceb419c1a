"""What trains a model: weights, optimizer, schedule, average and the step, with PyTorch or another backend."""

from dataclasses import dataclass

from accelerate import Accelerator
from omegaconf import DictConfig

from t2i.backends.jax.backend import Jax
from t2i.config.instantiate import build
from t2i.distributed.processes import Layout
from t2i.experiment.plan import Plan
from t2i.models.converted import users_cache
from t2i.models.model import Model
from t2i.optim.trained_weights import hold_weights
from t2i.runs.checkpoints import Stateful
from t2i.training.step import Optimization, OptimizerStep, PyTorchStep


@dataclass(frozen=True)
class Training:
    """A model's optimization, the step that it takes, and what a checkpoint holds of both."""

    optimization: Optimization
    take_step: OptimizerStep
    state: dict[str, Stateful]


def set_up(cfg: DictConfig, plan: Plan, model: Model, layout: Layout, accelerator: Accelerator) -> Training:
    """Build optimizer, learning-rate schedule, average and step for a model's denoiser."""
    own = hold_weights(model.denoiser, plan.precision)
    torch_optimizer = build(cfg, "optimizer")(list(own.weights.values()))
    own.attach(torch_optimizer)
    lr_scheduler = build(cfg, "lr_scheduler")(torch_optimizer)
    max_grad_norm = cfg.max_grad_norm or float("inf")
    if isinstance(plan.backend, Jax):
        from t2i.backends.jax.training import Settings, train_in_jax

        settings = Settings(
            sliced=plan.backend.sliced,
            recomputed=cfg.checkpoint_levels if cfg.gradient_checkpointing else 0,
            dtype=plan.precision.dtype,
            batch_size=cfg.batch_size,
            max_grad_norm=max_grad_norm,
            cache=users_cache() / "jax",  # programs for the processor
        )
        there = train_in_jax(model, own, torch_optimizer, plan.ema, plan.diffusion, plan.loss, settings)
        optimization = Optimization(
            trained=there.trained,
            optimizer=there.optimizer,
            lr_scheduler=lr_scheduler,
            ema=there.ema,
            max_grad_norm=max_grad_norm,
        )
        take_step: OptimizerStep = there.take_step
    else:
        trained, optimizer = layout.prepare(model, own, torch_optimizer)
        plan.ema.track(trained, torch_optimizer)
        optimization = Optimization(
            trained=trained, optimizer=optimizer, lr_scheduler=lr_scheduler, ema=plan.ema, max_grad_norm=max_grad_norm
        )
        take_step = PyTorchStep(
            model=model,
            diffusion=plan.diffusion,
            loss=plan.loss,
            optimization=optimization,
            batch_size=cfg.batch_size,
            accelerator=accelerator,
        )
    state = layout.checkpoint_state(
        optimization.optimizer, denoiser=optimization.trained, lr_scheduler=lr_scheduler, ema=optimization.ema
    )
    return Training(optimization, take_step, state)
