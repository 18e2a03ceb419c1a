"""What is trained of a model: the complete denoiser, or low-rank adapters next to its frozen weights."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from t2i.config import ConfigError, check_positive
from t2i.models.adapter import Adapter
from t2i.models.loading import quiet
from t2i.models.model import Model
from t2i.models.pipeline_parts import denoiser_of
from t2i.models.portable import make_portable
from t2i.models.trained_text import TextTrained, freeze_unused

AVERAGED, RAW = "pytorch_lora_weights.safetensors", "pytorch_lora_weights.non_ema.safetensors"
EXPORTED = (  # settings of peft that differ from its defaults in an export, or from one version to the next
    *("r", "lora_alpha", "lora_dropout", "use_dora", "target_modules", "init_lora_weights", "peft_type"),
    *("peft_version", "inference_mode", "qalora_group_size"),
    "base_model_name_or_path",  # of text encoders, in exports of 0.1.0
)
INIT = {"kaiming": True, "gaussian": "gaussian"}  # adapter.init -> peft's; with both, training starts at the base


class NoAdapter(Adapter):
    """The complete denoiser is trained, and exported as a Diffusers pipeline; the raw weights are variant `non_ema`."""

    needs_pretrained = text_encoder = False

    def attach(self, model: Model, autocast: Callable[[Callable], Callable] | None = None) -> Model:
        return model

    def save(self, pipeline: Any, folder: Path) -> None:
        with quiet("diffusers.pipelines.pipeline_utils"):  # about parts that the pipeline comes without
            pipeline.save_pretrained(folder)
        make_portable(pipeline, folder)

    def save_raw(self, pipeline: Any, folder: Path) -> None:
        name = denoiser_of(pipeline.components)
        pipeline.components[name].save_pretrained(folder / name, variant="non_ema")


class LoRA(Adapter):
    """W + alpha / rank · B A in chosen layers: A and B are trained, W is not (Hu et al. 2021, arXiv 2106.09685).

    The export holds A and B only, as `load_lora_weights(folder)` of a stock pipeline takes them, and the scheduler.
    """

    needs_pretrained = True

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
        """target_modules: which layers of the denoiser, by the ends of their names.

        text_encoder: whether to adapt and train the text encoders, too; text_modules: which of their layers. dora:
        also train the length of each column of W, apart from its direction (Liu et al. 2024, arXiv 2402.09353).
        """
        check_positive("adapter.rank", rank, "4 to 128 are common")
        check_positive("adapter.alpha", alpha, "the same as adapter.rank is common")
        if not 0 <= dropout < 1:
            raise ConfigError(f"adapter.dropout={dropout} must be a fraction of the inputs, at least 0 and below 1")
        if init not in INIT:
            raise ConfigError(f"adapter.init={init} is not known; choose from {', '.join(INIT)}")
        self.settings: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "use_dora": dora}
        self.settings["init_lora_weights"] = INIT[init]
        self.target_modules, self.text_modules = list(target_modules), list(text_modules)
        self.text_encoder = text_encoder

    def attach(self, model: Model, autocast: Callable[[Callable], Callable] | None = None) -> Model:
        """Freeze the model and add adapters to it, which are drawn from torch's seed."""
        self._add(model.denoiser, "target_modules", self.target_modules)
        if not self.text_encoder:
            return model
        for encoder in model.text_encoders.values():
            self._add(encoder, "text_modules", self.text_modules)
        freeze_unused(model)
        if autocast:  # accelerate wraps only the network that is trained, but a pipeline calls its networks one by one
            for network in (model.denoiser, *model.text_encoders.values()):
                network.forward = autocast(network.forward)
        return TextTrained(model)

    def _add(self, network: Any, key: str, names: list[str]) -> None:
        from peft import LoraConfig

        if not hasattr(network, "add_adapter"):
            raise ConfigError(f"adapter: Diffusers has no adapters for a {type(network).__name__}; use adapter=none")
        network.requires_grad_(False)
        try:
            network.add_adapter(LoraConfig(target_modules=names, **self.settings))
        except ValueError as error:
            raise ConfigError(
                f"adapter.{key}={names} can't be adapted ({error}); give the ends of layer names, such as to_q or "
                "conv1 in a denoiser, q_proj in a text encoder"
            ) from error
        for weight in network.parameters():
            if weight.requires_grad:  # peft makes them in the type of the base
                weight.data = weight.data.float()

    def save(self, pipeline: Any, folder: Path) -> None:
        _save_adapters(pipeline, folder, AVERAGED)
        pipeline.scheduler.save_pretrained(folder / "scheduler")

    def save_raw(self, pipeline: Any, folder: Path) -> None:
        _save_adapters(pipeline, folder, RAW)


def refuse_foreign_settings(file: Path) -> None:
    """Raise ValueError for settings of adapters that no export has: peft imports modules that some of them name."""
    from peft import LoraConfig

    usual = LoraConfig().to_dict()
    with safe_open(file, framework="pt") as opened:
        settings = json.loads((opened.metadata() or {}).get("lora_adapter_metadata") or "{}")
    for key, value in settings.items():
        name = key.rpartition(".")[2]
        if value and name not in EXPORTED and value != usual.get(name):
            raise ValueError(f"{key} is set, which t2i does not export")
    for key in ("target_modules", "exclude_modules"):
        if any(isinstance(value, str) for name, value in settings.items() if name.endswith(f".{key}")):
            raise ValueError(f"{key} is a pattern instead of a list of names")


def _save_adapters(pipeline: Any, folder: Path, file: str) -> None:
    from peft import get_peft_model_state_dict

    adapted = {name: part for name, part in pipeline.components.items() if getattr(part, "peft_config", None)}
    layers = {
        f"{name}_lora_layers": get_peft_model_state_dict(part, save_embedding_layers=False)
        for name, part in adapted.items()
    }
    settings = {  # without the path of this machine that the base was read from
        f"{name}_lora_adapter_metadata": part.peft_config["default"].to_dict() | {"base_model_name_or_path": None}
        for name, part in adapted.items()
    }
    pipeline.save_lora_weights(folder, weight_name=file, **layers, **settings)
