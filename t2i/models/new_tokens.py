"""New words of a model: tokens whose vectors are trained (textual inversion: Gal et al. 2022, arXiv 2208.01618).

A word stands for one or more vectors, each with a token of its own: <sks>, <sks>_1, <sks>_2 ..., as in Diffusers, whose
pipelines put them all where a prompt holds the first.
"""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from t2i.config import ConfigError
from t2i.models.model import Model

log = logging.getLogger(__name__)
FOLDER, RAW_FOLDER = "embeddings", "embeddings.non_ema"  # of a run's model/: a file for each word
NAMES = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}  # of Stable Diffusion XL's, as ComfyUI reads them


@dataclass(frozen=True)
class NewTokens:
    """begin_at: each new word, and the words at whose vectors it begins. vectors: of each word."""

    begin_at: Mapping[str, str] = field(default_factory=dict)
    vectors: int = 1

    def __post_init__(self) -> None:
        if self.vectors != int(self.vectors) or self.vectors < 1:
            raise ConfigError(f"adapter.vectors={self.vectors} must be a whole number, at least 1")
        for word, begin in self.begin_at.items():
            if len(word.split()) != 1:
                raise ConfigError(f"adapter.new_tokens: '{word}' must be a word without blanks, such as <sks>")
            if not begin:
                raise ConfigError(f"adapter.new_tokens: {word} begins at '{begin}'; name a word that the model knows")
        files = [file_name(word) for word in self.begin_at]
        if len({*files}) < len(files):
            raise ConfigError(f"adapter.new_tokens: two of {', '.join(self.begin_at)} would have the same file's name")

    @classmethod
    def parse(cls, new_tokens: Sequence[str] | None, vectors: int) -> "NewTokens":
        """new_tokens: each `WORD:BEGIN`. Raises ConfigError for what has another form."""
        begin_at = {}
        for text in new_tokens or ():
            word, colon, begin = str(text).rpartition(":")
            if not colon:
                raise ConfigError(
                    f"adapter.new_tokens: '{text}' does not say what the word begins at; write '{text}:dog', with a "
                    "word that the model knows"
                )
            begin_at[word] = begin.strip()
        return cls(begin_at, vectors)

    def __bool__(self) -> bool:
        return bool(self.begin_at)

    def tokens(self, word: str) -> list[str]:
        """The tokens that a word consists of."""
        return [word, *(f"{word}_{number}" for number in range(1, self.vectors))]

    def expanded(self, caption: str) -> str:
        """The caption with all tokens of each word where it holds the word."""
        for word in self.begin_at:
            caption = caption.replace(word, " ".join(self.tokens(word)))
        return caption

    def refuse_unused(self, captions: Iterable[tuple[str, ...]]) -> None:
        """Raise ConfigError if a word is in no caption, so that nothing would be learned of it."""
        texts = [text for several in captions for text in several] if self else []
        for word in self.begin_at:
            if not any(word in text for text in texts):
                raise ConfigError(
                    f"adapter.new_tokens: no caption holds {word}, so nothing is learned of it; use for example "
                    f"dataset.caption='photo of {word}', or dataset.caption_template='{word}, {{caption}}'"
                )

    def add(self, model: Model) -> None:
        """Give the model's tokenizers and text encoders the words. Raises ConfigError for those that are known."""
        for (part, encoder), tokenizer in zip(model.text_encoders.items(), model.tokenizers.values(), strict=True):
            old: Any = encoder.get_input_embeddings()  # type: ignore[operator]
            number = old.num_embeddings
            rows = []
            for word, begin in self.begin_at.items():
                if known := [token for token in self.tokens(word) if token in tokenizer.get_vocab()]:
                    raise ConfigError(f"adapter.new_tokens: {part} knows {known[0]} already; choose another word")
                ids = tokenizer(begin, add_special_tokens=False).input_ids
                rows += [old.weight[ids].detach().float().mean(0)] * self.vectors
            tokenizer.add_tokens([token for word in self.begin_at for token in self.tokens(word)])
            ids = tokenizer.convert_tokens_to_ids([token for word in self.begin_at for token in self.tokens(word)])
            if ids != list(range(number, number + len(rows))):
                raise ConfigError(
                    f"adapter.new_tokens: {part} has {number} vectors, and its tokenizer as many other tokens; this "
                    "model can't learn new words"
                )
            encoder.set_input_embeddings(WithNewRows(old, torch.stack(rows)))  # type: ignore[operator]

    def save(self, pipeline: Any, folder: Path) -> None:
        """Write a file for each word, as `load_textual_inversion`, ComfyUI and Automatic1111 read it."""
        folder.mkdir(parents=True, exist_ok=True)
        parts = {name: part for name, part in pipeline.components.items() if _is_extended(part)}
        for place, word in enumerate(self.begin_at):
            rows = slice(place * self.vectors, (place + 1) * self.vectors)
            vectors = {
                name: part.get_input_embeddings().new[rows].detach().float().contiguous()
                for name, part in parts.items()
            }
            if len(vectors) == 1:
                (only,) = vectors.values()
                tensors = {word: only[0] if self.vectors == 1 else only}
            else:
                tensors = {NAMES[name]: vector for name, vector in vectors.items()}
            save_file(tensors, folder / file_name(word), {"token": word, "format": "pt"})


class WithNewRows(nn.Module):
    """An embedding with further rows, which alone are trained."""

    def __init__(self, old: nn.Embedding, new: Tensor):
        super().__init__()
        self.old, self.new = old.requires_grad_(False), nn.Parameter(new)
        self.num_embeddings, self.embedding_dim = old.num_embeddings + len(new), old.embedding_dim

    @property
    def weight(self) -> Tensor:
        """That of the old rows, whose type and device others ask for."""
        return self.old.weight

    def forward(self, ids: Tensor) -> Tensor:
        number = self.old.num_embeddings
        known = self.old(ids.clamp(max=number - 1))
        return torch.where((ids >= number)[..., None], self.new[(ids - number).clamp(min=0)].to(known.dtype), known)


def file_name(word: str) -> str:
    return (re.sub(r"\W+", "_", word).strip("_") or "word") + ".safetensors"


def _is_extended(part: Any) -> bool:
    return hasattr(part, "get_input_embeddings") and isinstance(part.get_input_embeddings(), WithNewRows)


def words_in(folder: Path) -> dict[str, bool]:
    """The files of words in a folder, and whether each has vectors for two text encoders."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            found[file.name] = {*opened.keys()} == {*NAMES.values()}
    return found


def load_words(pipeline: Any, folder: Path) -> None:
    """Load the words that a run has written into a stock pipeline."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            word = (opened.metadata() or {}).get("token", file.stem)
        tensors = load_file(file)
        if {*tensors} == {*NAMES.values()}:
            for name, key in NAMES.items():
                tokenizer = getattr(pipeline, name.replace("text_encoder", "tokenizer"))
                encoder = getattr(pipeline, name)
                pipeline.load_textual_inversion(tensors[key], token=word, text_encoder=encoder, tokenizer=tokenizer)
        else:
            pipeline.load_textual_inversion(tensors, token=word)
