"""What is trained of a model: the complete denoiser, or low-rank adapters next to its frozen weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i.config import ConfigError
from t2i.models.adapter import Adapter
from t2i.models.layer_choice import fitting
from t2i.models.library_logs import quiet
from t2i.models.model import Model
from t2i.models.parts import denoiser_of
from t2i.models.peft_adapter import PeftAdapter, check_ranks, ranked
from t2i.models.peft_layers import OFF_THE_BASE
from t2i.models.portable import make_portable
from t2i.models.single_file import SINGLE, check_single_file, write_single_file

INIT: dict[str, Any] = {  # adapter.init -> peft's; with all of them, training starts at the base
    "kaiming": True,
    "gaussian": "gaussian",
    "pissa": "pissa",
    "olora": "olora",
}


@dataclass
class NoAdapter(Adapter):
    """The complete denoiser is trained, and exported as a Diffusers pipeline; the raw weights are variant `non_ema`."""

    single_file: bool = False  # also write the averaged weights in the original layout

    needs_pretrained = text_encoder = quantizable = False

    def attach(self, model: Model, autocast: Callable[[Callable], Callable] | None = None) -> Model:
        if self.single_file:
            check_single_file(model.denoiser)
        return model

    def save(self, pipeline: Any, folder: Path) -> None:
        with quiet("diffusers.pipelines.pipeline_utils"):  # about parts that the pipeline comes without
            pipeline.save_pretrained(folder)
        make_portable(pipeline, folder)
        if self.single_file:
            write_single_file(pipeline, folder / SINGLE)

    def save_raw(self, pipeline: Any, folder: Path) -> None:
        name = denoiser_of(pipeline.components)
        pipeline.components[name].save_pretrained(folder / name, variant="non_ema")


@dataclass(kw_only=True)
class LoRA(PeftAdapter):
    """W + alpha / rank · B A in chosen layers: A and B are trained, W is not (Hu et al. 2021, arXiv 2106.09685).

    The export holds A and B only, as `load_lora_weights(folder)` of a stock pipeline takes them, and the scheduler.
    """

    rank: int
    alpha: float
    init: str
    dora: bool = False  # also train the length of each row of W, apart from its direction (Liu et al. 2024)
    rslora: bool = False  # scale by alpha / √rank (Kalajdzievski 2023, arXiv 2312.03732)
    rank_pattern: Mapping[str, int] | None = None  # other ranks of layers, by the ends of their names
    alpha_pattern: Mapping[str, float] | None = None  # other alphas; by default alpha / rank stays the same

    kind, quantizable = "lora", True

    def __post_init__(self) -> None:
        check_ranks(self.rank, self.alpha, self.patterns)
        super().__post_init__()
        if self.init not in INIT:
            raise ConfigError(f"adapter.init={self.init} is not known; choose from {', '.join(INIT)}")
        if self.init in OFF_THE_BASE and self.dora:
            raise ConfigError(
                f"adapter.init={self.init} changes the weights that adapter.dora measures; use one of them"
            )

    @property
    def patterns(self) -> dict[str, Mapping[str, float]]:
        return {"rank_pattern": self.rank_pattern or {}, "alpha_pattern": self.alpha_pattern or {}}

    def config(self, layers: Sequence[str]) -> Any:
        from peft import LoraConfig

        ranks, alphas = ranked(self.rank, self.alpha, self.rank_pattern, self.alpha_pattern)
        alpha: Any = self.alpha  # peft says int, and takes any number
        return LoraConfig(
            r=self.rank,
            lora_alpha=alpha,
            lora_dropout=self.dropout,
            use_dora=self.dora,
            use_rslora=self.rslora,
            rank_pattern=fitting(ranks, layers),
            alpha_pattern=fitting(alphas, layers),
            init_lora_weights=INIT[self.init],
            target_modules=list(layers),
        )
