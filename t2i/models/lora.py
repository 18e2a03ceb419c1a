"""What is trained of a model: the complete denoiser, or low-rank adapters next to its frozen weights."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i.config import ConfigError, check_positive
from t2i.models.adapter import Adapter
from t2i.models.adapting import adapt, continue_from
from t2i.models.library_logs import quiet
from t2i.models.lora_files import KOHYA, write_diffusers, write_kohya
from t2i.models.lora_reading import check_file
from t2i.models.lora_settings import AVERAGED, RAW
from t2i.models.model import Model
from t2i.models.parts import denoiser_of
from t2i.models.peft_layers import OFF_THE_BASE
from t2i.models.portable import make_portable
from t2i.models.single_file import SINGLE, check_single_file, write_single_file

log = logging.getLogger(__name__)

INIT: dict[str, Any] = {  # adapter.init -> peft's; with all of them, training starts at the base
    "kaiming": True,
    "gaussian": "gaussian",
    "pissa": "pissa",
    "olora": "olora",
}
FORMATS = (None, "kohya")  # of export.lora


@dataclass
class NoAdapter(Adapter):
    """The complete denoiser is trained, and exported as a Diffusers pipeline; the raw weights are variant `non_ema`."""

    single_file: bool = False  # also write the averaged weights in the original layout

    needs_pretrained = text_encoder = False

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
class LoRA(Adapter):
    """W + alpha / rank · B A in chosen layers: A and B are trained, W is not (Hu et al. 2021, arXiv 2106.09685).

    The export holds A and B only, as `load_lora_weights(folder)` of a stock pipeline takes them, and the scheduler.
    """

    rank: int
    alpha: float
    dropout: float
    init: str
    target_modules: Sequence[str]  # which layers of the denoiser, by the ends of their names
    text_encoder: bool  # whether to adapt and train the text encoders, too
    text_modules: Sequence[str]  # which of their layers
    dora: bool = False  # also train the length of each row of W, apart from its direction (Liu et al. 2024)
    rslora: bool = False  # scale by alpha / √rank (Kalajdzievski 2023, arXiv 2312.03732)
    rank_pattern: Mapping[str, int] | None = None  # other ranks of layers, by the ends of their names
    path: str | None = None  # a file of adapters to go on from, with its layers, ranks and alphas
    formats: str | None = None  # kohya: also write the file that ComfyUI, Automatic1111 and Forge read
    single_file: bool = False  # also write the base with the averaged adapters merged, in the original layout

    needs_pretrained = True

    def __post_init__(self) -> None:
        check_positive("adapter.rank", self.rank, "4 to 128 are common")
        check_positive("adapter.alpha", self.alpha, "the same as adapter.rank is common")
        for name, rank in (self.rank_pattern or {}).items():
            check_positive(f"adapter.rank_pattern.{name}", rank, "4 to 128 are common")
        if not 0 <= self.dropout < 1:
            raise ConfigError(
                f"adapter.dropout={self.dropout} must be a fraction of the inputs, at least 0 and below 1"
            )
        if self.init not in INIT:
            raise ConfigError(f"adapter.init={self.init} is not known; choose from {', '.join(INIT)}")
        if self.init in OFF_THE_BASE and self.dora:
            raise ConfigError(
                f"adapter.init={self.init} changes the weights that adapter.dora measures; use one of them"
            )
        if self.formats not in FORMATS:
            raise ConfigError(
                f"export.lora={self.formats} is not known; use kohya, or null for the Diffusers file alone"
            )
        if self.path is not None:
            check_file(self.path)

    def attach(self, model: Model, autocast: Callable[[Callable], Callable] | None = None) -> Model:
        """Freeze the model and add adapters to it, which are drawn from torch's seed, or read from `path`."""
        if self.single_file:
            check_single_file(model.denoiser)
        if self.path is not None:
            return continue_from(Path(self.path), model, self, autocast)
        names = {"denoiser": list(self.target_modules), "text_encoders": list(self.text_modules)}
        return adapt(model, self.config, names, self.text_encoder, autocast)

    def config(self, names: Sequence[str]) -> Any:
        """peft's configuration for layers that have these names, or names that end so."""
        from peft import LoraConfig

        patterns = dict(self.rank_pattern or {})
        alpha: Any = self.alpha  # peft says int, and takes any number
        return LoraConfig(
            r=self.rank,
            lora_alpha=alpha,
            lora_dropout=self.dropout,
            use_dora=self.dora,
            use_rslora=self.rslora,
            rank_pattern=patterns,
            alpha_pattern={name: self.alpha / self.rank * rank for name, rank in patterns.items()},
            init_lora_weights=INIT[self.init],
            target_modules=list(names),
        )

    def save(self, pipeline: Any, folder: Path) -> None:
        write_diffusers(pipeline, folder / AVERAGED)
        if self.formats == "kohya" and not write_kohya(pipeline, folder / KOHYA):
            log.info("export.lora=kohya: %s has none; other tools read %s", type(pipeline).__name__, AVERAGED)
        if self.single_file:
            write_single_file(pipeline, folder / SINGLE)
        pipeline.scheduler.save_pretrained(folder / "scheduler")

    def save_raw(self, pipeline: Any, folder: Path) -> None:
        write_diffusers(pipeline, folder / RAW)
