"""What the adapters of peft share: layers, text encoders, a file to go on from, and the files that are written."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from t2i.config import ConfigError, check_positive
from t2i.models.adapter import Adapter
from t2i.models.adapting import adapt, continue_from, with_trained_text
from t2i.models.layer_choice import CLIP, expand
from t2i.models.lora_files import KOHYA, PEFT, write_diffusers, write_kohya, write_peft
from t2i.models.lora_reading import check_file
from t2i.models.lora_settings import AVERAGED, RAW
from t2i.models.model import Model
from t2i.models.new_tokens import FOLDER, RAW_FOLDER, NewTokens
from t2i.models.single_file import SINGLE, check_single_file, write_single_file
from t2i.models.trained_text import TextTrained

log = logging.getLogger(__name__)

FORMATS = (None, "kohya")  # of export.lora


@dataclass(kw_only=True)
class PeftAdapter(Adapter):
    """Small weights in chosen layers are trained, and those of the model are not.

    The export holds them alone, with the scheduler: as Diffusers names them, and as kohya's scripts or LyCORIS do where
    these know the kind.
    """

    target_modules: Sequence[str] | str  # which layers of the denoiser, see `choose_layers`
    dropout: float  # fraction of something of the adapters that is left out in training
    text_encoder: bool  # whether to adapt and train the text encoders, too
    text_modules: Sequence[str] | str  # which of their layers
    layer_names: Mapping[str, Sequence[str]] | None = None  # what the words attention and ff stand for
    path: str | None = None  # a file of adapters to go on from, with its layers, ranks and alphas
    formats: str | None = None  # kohya: also write the file that ComfyUI, Automatic1111 and Forge read
    single_file: bool = False  # also write the base with the averaged adapters merged, in the original layout
    new_tokens: Sequence[str] | None = None  # WORD:BEGIN of new words, whose vectors are trained, too
    vectors: int = 1  # of each new word

    kind: ClassVar[str]
    needs_pretrained = True
    quantizable: ClassVar[bool] = False  # whether the base may be held in few bits

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"adapter.dropout={self.dropout} must be a fraction, at least 0 and below 1")
        expand(self.target_modules, self.layer_names or {}, "adapter.target_modules")
        expand(self.text_modules, CLIP, "adapter.text_modules")
        if self.formats not in FORMATS:
            raise ConfigError(
                f"export.lora={self.formats} is not known; use kohya, or null for the Diffusers file alone"
            )
        if self.path is not None:
            check_file(self.path)
        _ = self.words  # checks them

    @cached_property
    def words(self) -> NewTokens:
        return NewTokens.parse(self.new_tokens, self.vectors)

    @property
    def patterns(self) -> dict[str, Mapping[str, float]]:
        """Values of single layers, by setting and by the ends of the layers' names."""
        return {}

    def check(self, layers: Mapping[str, nn.Module]) -> None:
        """Refuse layers that can't be adapted so, which are given by their names."""

    @abstractmethod
    def config(self, layers: Sequence[str]) -> Any:
        """peft's configuration for layers of these names."""
        ...

    def attach(self, model: Model, autocast: Callable[[Callable], Callable] | None = None) -> Model:
        """Freeze the model and add adapters to it, which are drawn from torch's seed, or read from `path`."""
        if self.single_file:
            check_single_file(model.denoiser)
        for encoder in model.text_encoders.values() if self.words else ():
            encoder.requires_grad_(False)
        if self.path is not None:
            adapted = continue_from(Path(self.path), model, self, autocast)
        else:
            adapted = adapt(model, self, autocast)
        if not self.words:
            return adapted
        self.words.add(model)
        if isinstance(adapted, TextTrained):  # its text encoders have adapters, too
            return TextTrained(model, self.words)
        return with_trained_text(model, autocast, self.words)

    def save(self, pipeline: Any, folder: Path) -> None:
        write_diffusers(pipeline, folder / AVERAGED)
        write_peft(pipeline, folder / PEFT)
        if self.formats == "kohya" and not write_kohya(pipeline, folder / KOHYA):
            log.info("export.lora=kohya: other tools have no names for %s of this model", self.kind)
        if self.single_file:
            write_single_file(pipeline, folder / SINGLE)
        if self.words:
            self.words.save(pipeline, folder / FOLDER)
        pipeline.scheduler.save_pretrained(folder / "scheduler")

    def save_raw(self, pipeline: Any, folder: Path) -> None:
        write_diffusers(pipeline, folder / RAW)
        if self.words:
            self.words.save(pipeline, folder / RAW_FOLDER)


def check_ranks(rank: int, alpha: float, patterns: Mapping[str, Mapping[str, float]]) -> None:
    """Refuse ranks and alphas that are not positive."""
    check_positive("adapter.rank", rank, "4 to 128 are common")
    check_positive("adapter.alpha", alpha, "the same as adapter.rank is common")
    for name, values in patterns.items():
        for key, value in values.items():
            check_positive(f"adapter.{name}.{key}", value, "4 to 128 are common")


def ranked(
    rank: int, alpha: float, ranks: Mapping[str, int] | None, alphas: Mapping[str, float] | None
) -> tuple[dict[str, int], dict[str, float]]:
    """Ranks and alphas of single layers, by the ends of their names; alpha / rank stays the same unless it is given."""
    own = dict(ranks or {})
    return own, {**{name: alpha / rank * each for name, each in own.items()}, **(alphas or {})}
