"""What a run needs in memory, from the settings of its model: no weights are read, and none are computed with."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from accelerate.utils import convert_outputs_to_fp32
from omegaconf import DictConfig
from torch import Tensor, nn

from t2i.config.instantiate import build
from t2i.experiment.assembly import load_model
from t2i.experiment.plan import Plan
from t2i.models.model import Model
from t2i.models.quantization import held_bytes
from t2i.models.shapes import empty_parameters, shapes_only
from t2i.optim.precision import Precision
from t2i.optim.trained_weights import NetworkWeights, hold_weights
from t2i.training.live_tensors import LiveTensors

SIDE = 512  # of the matrix that the optimizer takes a step with


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Sizes in bytes, of one process that holds the complete network."""

    parameters: int  # how many
    trained_parameters: int  # how many
    frozen: int  # weights that are not trained
    trained: int  # weights that are, and their master copies
    updated: int  # of these, what the optimizer updates
    gradients: int
    optimizer: int
    average: int
    activations: int  # what else a step needs where its need is largest
    encoders: dict[str, int]  # weights of the autoencoder and the text encoders, which are gone before training
    caption: int  # of one in the cache

    @property
    def training(self) -> int:
        return self.frozen + self.trained + self.gradients + self.optimizer + self.average + self.activations

    @property
    def encoding(self) -> int:
        return sum(self.encoders.values())

    @property
    def checkpoint(self) -> int:
        """On the disk."""
        return self.updated + self.optimizer + self.average


def needs(cfg: DictConfig, plan: Plan) -> Needs:
    """What one process needs for the run on this machine's kind of hardware; takes no memory for it.

    Only the settings and the tokenizers of model.path are read. What a kernel takes for itself while it runs is not
    counted, nor what torch.compile saves.
    """
    autocast = autocast_on_cpu(plan.precision)
    eager = cfg.copy()
    eager.compile = False
    with shapes_only() as mode:
        model = load_model(eager, plan, autocast)
        empty_parameters(model.denoiser, mode)
        model.denoiser.train().forward = autocast(model.denoiser.forward)
        trained = hold_weights(model.denoiser, plan.precision)
        with mode:
            pixels = torch.empty(cfg.micro_batch_size, 3, cfg.dataset.resolution, cfg.dataset.resolution)
        x, _ = model.encode(pixels)
        text = full_length(model.embed(["a caption"] * cfg.micro_batch_size))
        rounds = 2 if cfg.batch_size > cfg.micro_batch_size else 1  # from the second on, all gradients are there
        peak = peak_of_step(model, x, text, rounds)
    weights = trained.weights.values()
    per_element = {dtype: bytes_per_element(cfg, dtype) for dtype in {weight.dtype for weight in weights}}
    optimizer, average = (sum(int(per_element[w.dtype][i] * w.numel()) for w in weights) for i in (0, 1))
    gradients = size(weight.grad for weight in weights if weight.grad is not None)
    copies = size(weight for name, weight in trained.weights.items() if weight is not trained.parameters[name])
    own = size(trained.parameters.values())
    frozen = size((*model.denoiser.parameters(), *model.denoiser.buffers())) - own
    if quantize := cfg.model.get("quantize"):
        linear = [module.weight for module in model.denoiser.modules() if type(module) is nn.Linear]
        held = [weight for weight in linear if not weight.requires_grad]
        frozen += sum(held_bytes(weight, quantize) - weight.nbytes for weight in held)
        peak += max(weight.nbytes for weight in held)  # a layer multiplies with dequantised weights
    return Needs(
        parameters=sum(weight.numel() for weight in model.denoiser.parameters()),
        trained_parameters=sum(weight.numel() for weight in weights),
        frozen=frozen,
        trained=own + copies,
        updated=size(weights),
        gradients=gradients,
        optimizer=optimizer,
        average=average,
        activations=peak - gradients,
        encoders=encoders(model),
        caption=size(text.values()) // cfg.micro_batch_size,
    )


def autocast_on_cpu(precision: Precision) -> Callable[[Callable], Callable]:
    """As `t2i.distributed.processes.autocast`, without joining other processes."""
    enabled = precision.dtype != "fp32"

    def context() -> torch.autocast:  # one for each network: a context that is entered again while it is on stays on
        return torch.autocast("cpu", precision.compute, enabled=enabled, cache_enabled=False)

    return lambda forward: convert_outputs_to_fp32(context()(forward))


def full_length(text: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same conditioning for captions without padding, which is what the masks of integers hide."""
    return {name: value if value.is_floating_point() else torch.ones_like(value) for name, value in text.items()}


def peak_of_step(model: Model, x: Tensor, text: dict[str, Tensor], rounds: int) -> int:
    """The most bytes that forward and backward of so many micro-batches take beside weights and inputs.

    The gradients are among them, and stay.
    """
    t = torch.zeros(len(x), dtype=torch.long)
    with LiveTensors() as live:
        for _ in range(rounds):
            model.denoise(x, t, text).float().square().mean().backward()
    return live.peak


def bytes_per_element(cfg: DictConfig, dtype: torch.dtype) -> tuple[float, float]:
    """What the optimizer and the average keep for each element of a large matrix, by a step with a small one."""
    weight = nn.Parameter(torch.zeros(SIDE, SIDE, dtype=dtype))
    trained = NetworkWeights({"weight": weight}, {"weight": weight})
    optimizer, average = build(cfg, "optimizer")([weight]), build(cfg, "ema")
    average.track(trained, optimizer)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    kept = [value for value in optimizer.state[weight].values() if isinstance(value, Tensor)]
    averaged = average.state_dict().values()
    of_state, of_average = (sum(value.nbytes for value in values if value.ndim) for values in (kept, averaged))
    return of_state / weight.numel(), of_average / weight.numel()


def encoders(model: Model) -> dict[str, int]:
    """Bytes of the weights of each, the largest first."""
    networks = {"vae": model.autoencoder, **model.text_encoders}
    sizes = {name: size(network.parameters()) for name, network in networks.items()}
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of these tensors."""
    return sum(tensor.nbytes for tensor in tensors)
