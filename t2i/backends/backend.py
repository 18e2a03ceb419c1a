"""What computes the optimizer steps and the predictions of a run: the seam for other libraries than PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from t2i.optim.precision import Precision

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from t2i.diffusion.losses import Weighting
    from t2i.diffusion.process import Diffusion
    from t2i.distributed.processes import Layout
    from t2i.models.model import Model
    from t2i.optim.ema import WeightAverage
    from t2i.optim.trained_weights import NetworkWeights
    from t2i.training.meters import Meter
    from t2i.training.step import Optimization, OptimizerStep


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a run trains with, in PyTorch, as it is before the first step."""

    model: "Model"
    own: "NetworkWeights"  # the trained weights of the model's denoiser
    optimizer: "torch.optim.Optimizer"
    lr_scheduler: "torch.optim.lr_scheduler.LRScheduler"
    ema: "WeightAverage"
    diffusion: "Diffusion"
    loss: "Weighting"
    precision: Precision
    recomputed: int | None  # levels whose activations the backward pass recomputes; None: all
    batch_size: int  # images per optimizer step, over all processes
    max_grad_norm: float  # infinity: gradients are not clipped
    max_bad_steps: int
    accelerator: "Accelerator"
    layout: "Layout"


@dataclass(frozen=True)
class Training:
    """What the loop trains with: weights, optimizer and average, the step that it takes, and what counts it."""

    optimization: "Optimization"
    take_step: "OptimizerStep"
    meter: "Meter"


class Backend(Protocol):
    """A library that trains. Data, draws, encoders, validation, samples and files are the same with each."""

    def precision(self, dtype: str, weights: str) -> Precision:
        """Which number formats these settings mean here; ConfigError if they can't run."""
        ...

    def channels_last(self, setting: bool | str, dtype: str, begun: bool | None) -> bool:
        """Whether PyTorch's convolutions hold their kernels with the channels last; see `in_channels_last`."""
        ...

    def check(self, settings: Mapping[str, Any]) -> None:
        """ConfigError for settings that are not supported, by their names in the configuration."""
        ...

    def check_model(self, model: "Model") -> None:
        """ConfigError for a network that is not supported."""
        ...

    def start(self, precision: Precision, timeout: float) -> "Accelerator":
        """Join the other processes; its device is where PyTorch computes. timeout: see `processes.start`."""
        ...

    def prepare(self, parts: Parts) -> Training:
        """Make ready to train; from now on the model's denoiser predicts with the weights that are trained."""
        ...

    def facts(self, accelerator: "Accelerator") -> dict[str, Any]:
        """What run.json says of the library and its devices."""
        ...
