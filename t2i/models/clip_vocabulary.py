"""CLIP's vocabulary (Radford et al. 2021, arXiv 2103.00020), which neither Transformers nor t2i brings with it.

It is read from the package open_clip_torch, which ships OpenAI's bpe_simple_vocab_16e6.txt.gz under the MIT licence, or
from a folder of the user's.
"""

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

from t2i.config import ConfigError

ARCHIVE = "bpe_simple_vocab_16e6.txt.gz"
SIZE = 49408
START, END = "<|startoftext|>", "<|endoftext|>"


def find_vocabulary(folder: Path) -> tuple[dict[str, int], list[str]] | None:
    """Tokens with their ids, and merges, from a tokenizer of Transformers, a pipeline's folder or the archive."""
    for place in (folder, folder / "tokenizer"):
        if (place / "vocab.json").is_file() and (place / "merges.txt").is_file():
            vocabulary = json.loads((place / "vocab.json").read_text(encoding="utf-8"))
            lines = (place / "merges.txt").read_text(encoding="utf-8").splitlines()
            return vocabulary, [line for line in lines if line and not line.startswith("#version")]
    return from_archive(folder / ARCHIVE) if (folder / ARCHIVE).is_file() else None


def packaged_vocabulary() -> tuple[dict[str, int], list[str]] | None:
    """That of the package open_clip_torch, which is not imported; None if it is not installed."""
    found = importlib.util.find_spec("open_clip")
    return find_vocabulary(Path(found.origin).parent) if found and found.origin else None


def from_archive(file: Path) -> tuple[dict[str, int], list[str]]:
    """Bytes, bytes at the end of a word, merges, and the two special tokens, in this order."""
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").splitlines()
    letters = _bytes()
    merges = lines[1 : SIZE - 2 * len(letters) - 1]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    return {token: place for place, token in enumerate([*tokens, START, END])}, merges


def _bytes() -> list[str]:
    """The letter for each byte, printable ones first: those of GPT-2 (Radford et al. 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = sum(byte not in printable for byte in range(256))
    return [*map(chr, printable), *(chr(256 + place) for place in range(others))]


def write_tokenizer(folder: Path, vocabulary: dict[str, int], merges: list[str], padding: str) -> None:
    """Write what Transformers reads as a CLIPTokenizer. padding: the token that captions are filled up with."""
    if len(vocabulary) != SIZE or END not in vocabulary:
        raise ConfigError(f"the vocabulary has {len(vocabulary)} tokens, and CLIP's has {SIZE}; use another tokenizer")
    folder.mkdir(parents=True)
    settings: dict[str, Any] = {
        **{"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True},
        **{"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": padding},
    }
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
