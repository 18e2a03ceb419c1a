"""The settings of backend=jax, and what it refuses. JAX itself is imported only when it is needed."""

import importlib.util
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from t2i.backends.backend import Backend, Parts, Training
from t2i.config import ConfigError
from t2i.diffusion.losses import Weighting
from t2i.diffusion.residuals import Huber, SmoothL1, Squared
from t2i.models.lora import LoRA, NoAdapter
from t2i.optim.precision import Precision, resolve_precision

if TYPE_CHECKING:
    from accelerate import Accelerator

    from t2i.models.model import Model

WEIGHTS = ("replicated", "sliced")
MODELS = tuple(f"t2i.models.{name}.load" for name in ("stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3"))
OFF = (
    *("compile", "channels_last", "tf32", "cudnn_benchmark", "deterministic"),
    *("adapter.text_encoder", "adapter.new_tokens", "adapter.dora", "adapter.dropout"),
)
OTHERWISE = "or backend=torch"


class Jax(Backend):
    """JAX on all devices of all processes."""

    def __init__(self, weights: str):
        """weights: replicated, or sliced over the devices."""
        if weights not in WEIGHTS:
            raise ConfigError(f"backend.weights={weights} is not known; choose from {', '.join(WEIGHTS)}")
        if importlib.util.find_spec("jax") is None:
            raise ConfigError("backend=jax needs the package jax; pip install 't2i[jax]', or on a TPU 't2i[tpu]'")
        if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
            raise ConfigError(
                "FSDP is PyTorch's; backend=jax shards with backend.weights=sliced, and its processes are started by "
                "torchrun or accelerate launch --multi_gpu"
            )
        self.sliced = weights == "sliced"

    def precision(self, dtype: str, weights: str) -> Precision:
        """`auto` is bf16 on TPUs and GPUs. The trained weights are float32, as next to PyTorch's master copy."""
        if dtype == "fp16":
            raise ConfigError(f"precision=fp16 is not supported by backend=jax; use precision=bf16, {OTHERWISE}")
        if weights == "stochastic":
            raise ConfigError(
                f"precision.weights=stochastic is not supported by backend=jax; use precision=bf16, {OTHERWISE}"
            )
        from t2i.backends.jax.devices import all_devices

        on_cpu = all_devices()[0].platform == "cpu"
        if dtype == "auto" and not on_cpu:
            dtype = "bf16"
        chosen = resolve_precision(dtype, weights) if on_cpu else Precision(dtype, weights)
        if chosen.dtype not in ("fp32", "bf16"):
            raise ConfigError(f"precision.dtype={dtype} is not known; choose from auto, fp32, bf16")
        return Precision(chosen.dtype, "fp32")

    def channels_last(self, setting: bool | str, dtype: str, begun: bool | None) -> bool:
        return False  # XLA chooses its own layouts

    def check(self, settings: Mapping[str, Any]) -> None:
        if (target := settings["model"]) not in MODELS:
            raise ConfigError(
                f"backend=jax trains Stable Diffusion 1.x, 2.x, XL and 3, and the model is {target}; use model=sd15, "
                "sd21, sdxl, sd35, tiny or tiny_flow, or backend=torch"
            )
        if type(settings["adapter"]) not in (NoAdapter, LoRA):
            kind = type(settings["adapter"]).__name__
            raise ConfigError(f"backend=jax knows no {kind}; use adapter=lora or none, {OTHERWISE}")
        loss = settings["loss"]
        if type(loss).__call__ is not Weighting.__call__ or type(loss.error) not in (Squared, Huber, SmoothL1):
            raise ConfigError(f"backend=jax can't compute the error of {type(loss).__name__}; use backend=torch")
        if settings["attention"] != "auto":
            raise ConfigError(
                f"attention={settings['attention']} is one of PyTorch's, and JAX has its own; use attention=auto, "
                f"{OTHERWISE}"
            )
        if (workers := settings["num_workers"]) not in (0, "auto"):
            raise ConfigError(
                f"num_workers={workers} forks this process, which JAX does not survive; use num_workers=0, {OTHERWISE}"
            )
        for name in OFF:
            if value := settings.get(name):
                given, off = (
                    ("true", "false") if value is True else (value, "0" if name.endswith("dropout") else "null")
                )
                raise ConfigError(f"{name}={given} is not supported by backend=jax; use {name}={off}, {OTHERWISE}")
        from t2i.backends.jax.devices import Devices
        from t2i.backends.jax.optimizers import refuse_unknown

        refuse_unknown(settings["optimizer"])
        count, micro = len(Devices().own), settings["micro_batch_size"]
        if micro % count:
            raise ConfigError(
                f"micro_batch_size={micro} is not a multiple of the {count} devices that share it; try "
                f"{-(-micro // count) * count}"
            )

    def check_model(self, model: "Model") -> None:
        from t2i.backends.jax.networks import network_of

        network_of(model.denoiser, {})

    def start(self, precision: Precision, timeout: float) -> "Accelerator":
        """PyTorch stays on the CPU, and so do its ways between the processes."""
        from t2i.distributed import processes

        return processes.start("no", timeout, on_cpu=True)

    def prepare(self, parts: Parts) -> Training:
        from t2i.backends.jax.training import train_in_jax

        return train_in_jax(parts, self.sliced)

    def facts(self, accelerator: "Accelerator") -> dict[str, Any]:
        from t2i.backends.jax.devices import Devices

        devices = Devices()
        first = devices.mesh.devices.flat[0]
        return {
            "backend": "jax",
            "attention": "jax",  # which kernel depends on the shapes of each layer
            "device": first.platform,
            "gpu": None if first.platform == "cpu" else first.device_kind,
            "devices": len(devices),
        }
