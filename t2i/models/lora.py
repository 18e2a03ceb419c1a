"""What of a model is trained: the whole denoiser, or low-rank adapters beside its frozen weights."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t2i.config import ConfigError, check_positive
from t2i.optim.ema import EMA, NoEMA
from t2i.optim.trained_weights import Trained

AVERAGED, RAW = "pytorch_lora_weights.safetensors", "pytorch_lora_weights.non_ema.safetensors"
INIT = {"kaiming": True, "gaussian": "gaussian"}  # our words to peft's; with both, training starts at the base


class NoAdapter:
    """All of the denoiser is trained."""

    needs_pretrained = text_encoder = False

    def attach(self, model: Any, autocast: Callable[[Callable], Callable] | None = None) -> Any:
        return model

    def export(
        self, model: Any, scheduler: Any, trained: Trained, ema: EMA | NoEMA, folder: Path, writes: bool
    ) -> None:
        """A complete Diffusers pipeline in float32: the averaged weights, and the raw ones as variant `non_ema`.

        The scheduler is the one trained with: without its prediction type the samples would be noise.
        writes: whether this process does so; the others bring their share, where the network is shared out.
        """
        with ema.applied(torch.float32):
            if writes:
                model.pipeline(scheduler).save_pretrained(folder)
        if len(ema.variants()) > 1:
            with trained.replaced(trained.weights, torch.float32):
                if writes:
                    model.pipeline(scheduler).unet.save_pretrained(folder / "unet", variant="non_ema")


class LoRA:
    """W + alpha / rank · B A beside chosen layers: A and B are trained, W is not (Hu et al. 2021, arXiv 2106.09685).

    With `dora` the length of each of W's columns is trained as well, apart from its direction (Liu et al. 2024, arXiv
    2402.09353). target_modules: the ends of the names of the denoiser's layers; text_modules: of the text encoders',
    which are trained too with `text_encoder`.
    """

    needs_pretrained = True  # what is exported is nothing without the base

    def __init__(
        self,
        rank: int,
        alpha: float,
        dropout: float,
        init: str,
        target_modules: Sequence[str],
        text_encoder: bool,
        text_modules: Sequence[str],
        dora: bool = False,
    ):
        check_positive("adapter.rank", rank, "4 to 128 are common")
        check_positive("adapter.alpha", alpha, "the same as adapter.rank is common")
        if not 0 <= dropout < 1:
            raise ConfigError(f"adapter.dropout={dropout} is a share of the inputs: at least 0 and below 1")
        if init not in INIT:
            raise ConfigError(f"adapter.init={init} is not known; choose from {', '.join(INIT)}")
        self.settings = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "use_dora": dora}
        self.settings["init_lora_weights"] = INIT[init]
        self.target_modules, self.text_modules = list(target_modules), list(text_modules)
        self.text_encoder = text_encoder

    def attach(self, model: Any, autocast: Callable[[Callable], Callable] | None = None) -> Any:
        """Freeze the model and put adapters, drawn from torch's seed, into it; returns the model to train.

        autocast: see `processes.autocast`; None: products are in the type of the weights.
        """
        self._add(model.denoiser, "target_modules", self.target_modules)
        if not self.text_encoder:
            return model
        for encoder in model.text_encoders.values():
            self._add(encoder, "text_modules", self.text_modules)
        _freeze_unused(model)
        if autocast:  # of the whole accelerate takes care; a pipeline calls its networks one by one
            for network in (model.denoiser, *model.text_encoders.values()):
                network.forward = autocast(network.forward)
        return TextTrained(model)

    def _add(self, module: nn.Module, key: str, names: list[str]) -> None:
        from peft import LoraConfig

        module.requires_grad_(False)
        try:
            module.add_adapter(LoraConfig(target_modules=names, **self.settings))
        except ValueError as error:
            raise ConfigError(
                f"adapter.{key}={names} can't be adapted ({error}); give the ends of names of layers, such as to_q or "
                "conv1 in a denoiser, q_proj in a text encoder"
            ) from error

    def export(
        self, model: Any, scheduler: Any, trained: Trained, ema: EMA | NoEMA, folder: Path, writes: bool
    ) -> None:
        """The adapters alone, as `load_lora_weights(folder)` of a stock pipeline takes them, and the scheduler.

        The averaged weights are in the file that is loaded by default, the raw ones in another beside it.
        writes: see `NoAdapter.export`.
        """
        with ema.applied(torch.float32):
            if writes:
                self._save(model.pipeline(scheduler), folder, AVERAGED)
        if len(ema.variants()) > 1:
            with trained.replaced(trained.weights, torch.float32):
                if writes:
                    self._save(model.pipeline(scheduler), folder, RAW)
        if writes:
            scheduler.save_pretrained(folder / "scheduler")

    def _save(self, pipeline: Any, folder: Path, file: str) -> None:
        from peft import get_peft_model_state_dict

        adapted = {name: part for name, part in pipeline.components.items() if getattr(part, "peft_config", None)}
        layers = {
            f"{name}_lora_layers": get_peft_model_state_dict(part, save_embedding_layers=False)
            for name, part in adapted.items()
        }
        settings = {
            f"{name}_lora_adapter_metadata": part.peft_config["default"].to_dict() for name, part in adapted.items()
        }
        pipeline.save_lora_weights(folder, weight_name=file, **layers, **settings)


def _freeze_unused(model: Any) -> None:
    """Freeze what no embedding depends on, in XL the smaller encoder's last layer: processes would wait for it."""
    encoders = model.text_encoders.values()
    weights = [weight for encoder in encoders for weight in encoder.parameters() if weight.requires_grad]
    embedded = sum(tensor.sum() for tensor in model.condition(model.tokenize(["a caption"])).values())
    for weight, gradient in zip(weights, torch.autograd.grad(embedded, weights, allow_unused=True), strict=True):
        weight.requires_grad_(gradient is not None)


class TextTrained:
    """A model whose text encoders are trained: the cache holds captions as tokens, and each step embeds them.

    Its `denoiser` is all that is trained, as one network, so that the loop prepares, averages and saves it as one.
    """

    def __init__(self, model: Any):
        self.model, self.denoiser = model, TextAndDenoiser(model)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    @property
    def text_content(self) -> list[Any]:
        return list(self.tokenizers.values())

    def embed(self, captions: Sequence[str]) -> dict[str, Tensor]:
        return self.model.tokenize(captions)

    def denoise(self, x: Tensor, t: Tensor, text: dict[str, Tensor]) -> Tensor:
        return self.denoiser(x, t, text)


class TextAndDenoiser(nn.Module):
    """Embeds and denoises."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        self.unet, self.text_encoders = model.denoiser, nn.ModuleDict(model.text_encoders)

    def forward(self, x: Tensor, t: Tensor, tokens: dict[str, Tensor]) -> Tensor:
        return self.model.denoise(x, t, tokens | self.model.condition(tokens))
