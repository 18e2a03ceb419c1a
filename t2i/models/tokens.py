"""Captions as tokens, as the stock pipelines pad and cut them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from t2i.hardware.uploads import upload
from t2i.models.model_folder import NO_LIMIT

if TYPE_CHECKING:  # the import takes a second, and settings are checked before
    from transformers import PreTrainedTokenizerBase


def token_ids(tokenizer: "PreTrainedTokenizerBase", captions: Sequence[str], length: int | None = None) -> Tensor:
    """[B, L], padded to `length` and cut at it; None: the length that the tokenizer was saved with."""
    return padded(tokenizer, captions, length)[0]


def padded(
    tokenizer: "PreTrainedTokenizerBase", captions: Sequence[str], length: int | None = None
) -> tuple[Tensor, Tensor]:
    """Token ids, and a mask that is 1 where they are not padding, each [B, L]; for `length` see `token_ids`."""
    length = length or tokenizer.model_max_length
    tokens = tokenizer(list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return tokens.input_ids, tokens.attention_mask


def lengths(tokenizer: "PreTrainedTokenizerBase", captions: Sequence[str]) -> list[int]:
    """The number of tokens of each caption, with those that begin and end it, before it is cut."""
    tokens = tokenizer(list(captions), truncation=False, verbose=False).input_ids if captions else []
    return [len(ids) for ids in tokens]


def with_length(tokenizer: "PreTrainedTokenizerBase", encoder: Mapping[str, Any]) -> "PreTrainedTokenizerBase":
    """The tokenizer of a CLIP, with the length of its encoder, whose settings are given, if its own files say none."""
    if tokenizer.model_max_length == NO_LIMIT and str(encoder.get("model_type", "")).startswith("clip"):
        tokenizer.model_max_length = encoder.get("max_position_embeddings", 77)
    return tokenizer


def forget_calls(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Reset padding and truncation, which the last call has set and which would be saved in tokenizer.json."""
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()


def plain(captions: Sequence[str]) -> list[str]:
    """In lower case and without surrounding spaces, as the pipelines of PixArt and Sana tokenize them."""
    return [caption.lower().strip() for caption in captions]


def chat(tokenizer: "PreTrainedTokenizerBase", captions: Sequence[str], thinking: bool) -> list[str]:
    """Each caption as the user's turn of a conversation with a language model, whose answer is to begin."""
    settings = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": thinking}
    turns = [[{"role": "user", "content": caption}] for caption in captions]
    return [str(tokenizer.apply_chat_template(turn, **settings)) for turn in turns]


def upload_text(text: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """What a denoiser is conditioned on, on the device; the host keeps "lengths", [B], that of each masked caption."""
    lengths = {"lengths": text["mask"].sum(1)} if "mask" in text else {}
    return {name: upload(value, device) for name, value in text.items()} | lengths


def caption_lengths(text: Mapping[str, Tensor]) -> list[int]:
    """The number of tokens of each caption that the denoiser sees; the host waits for them without "lengths"."""
    return (text["lengths"] if "lengths" in text else text["mask"].sum(1)).tolist()


def left_aligned(hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states [B, L, D] and their mask [B, L], with the padding at the end, and zero there."""
    order = mask.argsort(dim=1, descending=True, stable=True)
    mask = mask.gather(1, order)
    return hidden.gather(1, order[..., None].expand_as(hidden)) * mask[..., None], mask
