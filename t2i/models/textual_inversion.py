"""Textual inversion: nothing but the vectors of new words is trained (Gal et al. 2022, arXiv 2208.01618)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from t2i.config import ConfigError
from t2i.models.adapter import Adapter
from t2i.models.adapting import with_trained_text
from t2i.models.model import Model
from t2i.models.new_tokens import FOLDER, RAW_FOLDER, NewTokens


@dataclass(kw_only=True)
class TextualInversion(Adapter):
    """The export holds the vectors alone, a file for each word, as `load_textual_inversion` takes them."""

    new_tokens: Sequence[str]  # WORD:BEGIN of each new word, which begins at the vectors of BEGIN
    vectors: int  # of each word

    needs_pretrained, text_encoder, quantizable = True, False, False

    def __post_init__(self) -> None:
        if not self.words:
            raise ConfigError("adapter.new_tokens is empty; name a word and one to begin at, such as ['<sks>:dog']")

    @cached_property
    def words(self) -> NewTokens:
        return NewTokens.parse(self.new_tokens, self.vectors)

    def attach(self, model: Model, autocast: Callable[[Callable], Callable] | None = None) -> Model:
        for network in (model.denoiser, *model.text_encoders.values()):
            network.requires_grad_(False)
        self.words.add(model)
        return with_trained_text(model, autocast, self.words)

    def save(self, pipeline: Any, folder: Path) -> None:
        self.words.save(pipeline, folder / FOLDER)
        pipeline.scheduler.save_pretrained(folder / "scheduler")

    def save_raw(self, pipeline: Any, folder: Path) -> None:
        self.words.save(pipeline, folder / RAW_FOLDER)
