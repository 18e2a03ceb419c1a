"""Pipeline folders that tools with Transformers 4 read as well as those with Transformers 5.

Transformers 5 writes a few things in ways that version 4 misreads: a text encoder whose weights have other names is
drawn anew there, with a warning only. What is added here is read alike by both.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file

CLIP_PREFIX = "text_model."  # of CLIPTextModel's weights up to Transformers 5.5
VOCABULARIES = ("spiece.model", "tokenizer.model")  # of SentencePiece, which only the original model has


def make_portable(pipeline: Any, folder: Path) -> None:
    """Complete what `pipeline.save_pretrained(folder)` wrote."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    for name, part in pipeline.components.items():
        if part is None or not (folder / name).is_dir():
            continue
        if name.startswith("text_encoder"):
            _complete_config(folder / name / "config.json")
            if type(part).__name__ == "CLIPTextModel":
                _prefix_weights(folder / name)
        elif name.startswith("tokenizer"):
            index[name][1] = _complete_tokenizer(part, folder / name, index[name][1])
    _write(folder / "model_index.json", index)


def original_keys(network: Any, names: Mapping[str, Any]) -> dict[str, Any]:
    """Weights of a text encoder, by their names, under the names that every version of Transformers reads."""
    if type(network).__name__ != "CLIPTextModel":
        return dict(names)
    return {name if name.startswith(CLIP_PREFIX) else CLIP_PREFIX + name: value for name, value in names.items()}


def _prefix_weights(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            names, metadata = list(opened.keys()), opened.metadata()
        if not all(name.startswith(CLIP_PREFIX) for name in names):
            weights = {CLIP_PREFIX + name.removeprefix(CLIP_PREFIX): value for name, value in load_file(file).items()}
            save_file(weights, file, metadata)
    for file in folder.glob("*.index.json"):
        index = json.loads(file.read_text(encoding="utf-8"))
        names = index["weight_map"].items()
        index["weight_map"] = {CLIP_PREFIX + name.removeprefix(CLIP_PREFIX): shard for name, shard in names}
        _write(file, index)


def _complete_config(file: Path) -> None:
    """Say the type and the rotary embedding under the keys of Transformers 4 as well, which has wrong defaults."""
    config = json.loads(file.read_text(encoding="utf-8"))
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        if "dtype" in part:
            part["torch_dtype"] = part["dtype"]
        rope = part.get("rope_parameters")
        if isinstance(rope, dict) and "rope_theta" in rope:
            part["rope_theta"] = rope["rope_theta"]
            scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
            part["rope_scaling"] = None if scaling in ({}, {"rope_type": "default"}) else scaling
    _write(file, config)


def _complete_tokenizer(tokenizer: Any, folder: Path, kind: str) -> str:
    """Add the files that the tokenizers in Python read; returns the class that version 4 can read the folder with."""
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    special = config.pop("extra_special_tokens", None)
    if isinstance(special, list):  # version 4 expects a table under this name
        config["additional_special_tokens"] = special
    elif special:
        config["extra_special_tokens"] = special
    if "bos_token" in config and kind.startswith("Gemma"):  # version 4 adds it unless it is told not to
        config["add_bos_token"] = tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    _write(file, config)
    model: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if type(model).__name__ == "BPE" and kind in ("CLIPTokenizer", "Qwen2Tokenizer"):
        model.save(str(folder))  # vocab.json and merges.txt
        return kind
    if any((folder / name).is_file() for name in VOCABULARIES):
        return kind
    import transformers

    fast = f"{kind}Fast"
    return fast if not kind.endswith("Fast") and hasattr(transformers, fast) else kind


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
