"""PyTorch, which everything else is measured against."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from t2i.backends.backend import Backend, Parts, Training
from t2i.optim.numerics import in_channels_last
from t2i.optim.precision import MIXED_PRECISION, Precision, resolve_precision

if TYPE_CHECKING:
    from accelerate import Accelerator

    from t2i.models.model import Model


class PyTorch(Backend):
    """Supports every setting."""

    def precision(self, dtype: str, weights: str) -> Precision:
        return resolve_precision(dtype, weights)

    def channels_last(self, setting: bool | str, dtype: str, begun: bool | None) -> bool:
        return in_channels_last(setting, dtype, begun)

    def check(self, settings: Mapping[str, Any]) -> None:
        pass

    def check_model(self, model: "Model") -> None:
        pass

    def start(self, precision: Precision, timeout: float) -> "Accelerator":
        from t2i.distributed import processes

        return processes.start(MIXED_PRECISION[precision.dtype], timeout)

    def prepare(self, parts: Parts) -> Training:
        from t2i.training.meters import Meter
        from t2i.training.step import Optimization, PyTorchStep

        trained, optimizer = parts.layout.prepare(parts.model, parts.own, parts.optimizer)
        parts.ema.track(trained, parts.optimizer)
        optimization = Optimization(
            trained=trained,
            optimizer=optimizer,
            lr_scheduler=parts.lr_scheduler,
            ema=parts.ema,
            max_grad_norm=parts.max_grad_norm,
        )
        take_step = PyTorchStep(
            model=parts.model,
            diffusion=parts.diffusion,
            loss=parts.loss,
            optimization=optimization,
            batch_size=parts.batch_size,
            accelerator=parts.accelerator,
        )
        num_timesteps, device = len(parts.diffusion), parts.accelerator.device
        meter = Meter(parts.batch_size, parts.max_grad_norm, num_timesteps, parts.max_bad_steps, device)
        return Training(optimization, take_step, meter)

    def facts(self, accelerator: "Accelerator") -> dict[str, Any]:
        return {"backend": "torch", "devices": accelerator.num_processes}
