"""What decides what the encoders make of images and captions, as a hash."""

import hashlib
import json
from pathlib import Path

from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from t2i.runs.files import atomic_write

ASIDE = ("dtype", "torch_dtype", "transformers_version", "architectures")  # in a config.json, without effect


def hash_of(*parts: Path | PreTrainedTokenizerBase | str, memory: Path) -> str:
    """A hash of files, tokenizers and texts, 32 hexadecimal digits.

    A file is known by its content and a config.json by its settings, wherever they lie. memory: a folder in which
    the hashes of files are remembered by place, size and time of change, for they are large.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(_content(part, memory).encode())
    return digest.hexdigest()[:32]


def _content(part: Path | PreTrainedTokenizerBase | str, memory: Path) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, PreTrainedTokenizerBase):
        rules = json.loads(part.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}  # set by each call
        return json.dumps([rules, part.model_max_length, part.pad_token])
    if part.suffix == ".json":
        settings = json.loads(part.read_text())
        return repr(sorted((k, v) for k, v in settings.items() if not k.startswith("_") and k not in ASIDE))
    return _hash_of_file(part, memory)


def _hash_of_file(file: Path, memory: Path) -> str:
    state = file.stat()
    place = hashlib.sha256(repr((str(file.resolve()), state.st_size, state.st_mtime_ns)).encode())
    known = memory / place.hexdigest()[:32]
    memory.mkdir(parents=True, exist_ok=True)
    with FileLock(known.with_suffix(".lock")):  # two runs that start at once read it once
        if not known.is_file():
            with file.open("rb") as stream:
                atomic_write(known, hashlib.file_digest(stream, "sha256").hexdigest())
        return known.read_text()
