"""Hashes of everything that changes the output of the encoders."""

import hashlib
import json
import re
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from t2i.config import ConfigError
from t2i.data.cache_files import locked, warn_of_damage
from t2i.models.model import Content
from t2i.runs.files import atomic_write
from t2i.runs.links import read_regular
from t2i.runs.records import sync

LARGEST = 1000  # bytes of a file that holds a hash, which has 64
WITHOUT_EFFECT = ("dtype", "torch_dtype", "transformers_version", "architectures")  # settings of a config.json


def hash_of(*parts: Content, memory: Path) -> str:
    """A hash of files, tokenizers and texts, 32 hexadecimal digits.

    It depends on the content of a file and the settings of a config.json, not on their paths. memory: a folder in which
    the hashes of files, which may be large, are stored by path, size, inode, and times of modification and change.
    """
    return digest_of(*parts, memory=memory).hexdigest()[:32]


def digest_of(*parts: Content, memory: Path) -> "hashlib._Hash":
    """The hash of the same, which can be continued."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(_content(part, memory).encode())
    return digest


def _content(part: Content, memory: Path) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, PreTrainedTokenizerBase):
        rules = json.loads(part.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}  # set by calls
        return json.dumps([rules, part.model_max_length, part.pad_token])
    if part.suffix == ".json":
        settings = json.loads(part.read_text())
        if settings.get("shift_factor") == 0:  # as if there were none: the latents are the same
            settings["shift_factor"] = None
        return repr(sorted((k, v) for k, v in settings.items() if not k.startswith("_") and k not in WITHOUT_EFFECT))
    return _hash_of_file(part, memory)


def _hash_of_file(file: Path, memory: Path) -> str:
    state = file.stat()
    written = state.st_mtime_ns, state.st_ctime_ns, state.st_ino  # copying and restoring set only the first
    key = hashlib.sha256(repr((str(file.resolve()), state.st_size, *written)).encode())
    stored = memory / key.hexdigest()[:32]
    with locked(stored):  # of two runs that start at once, one reads the file
        if (known := _read_hash(stored)) is not None:
            return known
        with file.open("rb") as stream:
            computed = hashlib.file_digest(stream, "sha256").hexdigest()
        atomic_write(stored, computed)
        sync(memory)
        return computed


def _read_hash(stored: Path) -> str | None:
    """The hash in a file of the memory; None if there is none, or if it is damaged, of which a warning tells."""
    try:
        text = read_regular(stored, LARGEST, errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{stored}, a file of the cache, can't be read ({error.strerror}); delete it") from error
    except ValueError:
        text = ""
    if re.fullmatch("[0-9a-f]{64}", text):
        return text
    warn_of_damage(stored, "it holds no hash")
    return None
