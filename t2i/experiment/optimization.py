"""What trains a model: weights, optimizer, schedule, average and the step, with the backend of the plan."""

from accelerate import Accelerator
from omegaconf import DictConfig

from t2i.backends.backend import Parts, Training
from t2i.config.instantiate import build
from t2i.distributed.processes import Layout
from t2i.experiment.plan import Plan
from t2i.models.model import Model
from t2i.optim.trained_weights import hold_weights
from t2i.runs.checkpoints import Stateful


def set_up(
    cfg: DictConfig, plan: Plan, model: Model, layout: Layout, accelerator: Accelerator
) -> tuple[Training, dict[str, Stateful]]:
    """Build optimizer, learning-rate schedule, average and step for a model's denoiser.

    Returns also what a checkpoint holds of them.
    """
    own = hold_weights(model.denoiser, plan.precision)
    optimizer = build(cfg, "optimizer")(list(own.weights.values()))
    own.attach(optimizer)
    parts = Parts(
        model=model,
        own=own,
        optimizer=optimizer,
        lr_scheduler=build(cfg, "lr_scheduler")(optimizer),
        ema=plan.ema,
        diffusion=plan.diffusion,
        loss=plan.loss,
        precision=plan.precision,
        recomputed=cfg.checkpoint_levels if cfg.gradient_checkpointing else 0,
        batch_size=cfg.batch_size,
        max_grad_norm=cfg.max_grad_norm or float("inf"),
        max_bad_steps=cfg.max_bad_steps,
        accelerator=accelerator,
        layout=layout,
    )
    training = plan.backend.prepare(parts)
    trains = training.optimization
    state = layout.checkpoint_state(
        trains.optimizer, denoiser=trains.trained, lr_scheduler=trains.lr_scheduler, ema=trains.ema
    )
    return training, {**state, "meter": training.meter}
