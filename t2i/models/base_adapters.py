"""Adapters that are merged into a model before it is trained: `model.adapters=[FILE:0.8, RUN]`."""

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from t2i.config import ConfigError
from t2i.models.converted import converted, piece_of
from t2i.models.lora_reading import DENOISER, check_file, read_lora, settings_beside
from t2i.models.lora_settings import AVERAGED
from t2i.models.low_rank import AnyLayers
from t2i.models.merging import merge_into
from t2i.models.parts import PipelineParts

log = logging.getLogger(__name__)

INSIDE = (f"model/{AVERAGED}", AVERAGED, "adapter_model.safetensors")  # of a run's folder, its model/, and peft's
FACTS = "adapters.json"


@dataclass(frozen=True)
class BaseAdapter:
    """A file of adapters, and how strongly it is merged: W + scale · (W' − W), of which W' is W with the adapter."""

    file: Path
    scale: float

    @property
    def setting(self) -> str:
        return f"model.adapters={self.file}"


def parse_adapters(adapters: Sequence[str] | str | None) -> list[BaseAdapter]:
    """What `model.adapters` names. Raises ConfigError for what is no file of adapters, without reading weights."""
    texts = [adapters] if isinstance(adapters, str) else list(adapters or ())
    return [_parsed(str(text)) for text in texts]


def _parsed(text: str) -> BaseAdapter:
    place, scale = split_scale(text)
    path = Path(place).expanduser()
    if path.is_dir():
        found = next((path / name for name in INSIDE if (path / name).is_file()), None)
        if found is None:
            raise ConfigError(
                f"model.adapters={text}: the folder holds no adapters (none of {', '.join(INSIDE)}); give a file, or "
                "the folder of a run that has finished with an adapter"
            )
        path = found
    check_file(str(path), "model.adapters")
    return BaseAdapter(path, scale)


def split_scale(text: str) -> tuple[str, float]:
    """FILE:0.8 as FILE and 0.8; a FILE without a scale has 1."""
    place, colon, end = text.rpartition(":")
    if colon and not Path(text).expanduser().exists():
        with suppress(ValueError):
            if math.isfinite(scale := float(end)):
                return place, scale
    return text, 1.0


def use_adapters(parts: PipelineParts, adapters: Sequence[BaseAdapter]) -> None:
    """Let the parts of a pipeline that adapters change be read with these merged; that is done once, in the cache."""
    key = hashlib.sha256()
    for name in (parts.denoiser, *parts.names("text_encoder")):
        for file in parts.files(name):
            key.update(piece_of(file))
    for adapter in adapters:
        key.update(adapter.file.read_bytes() + settings_beside(adapter.file) + str(adapter.scale).encode())
    write = partial(write_merged, parts, adapters)
    folder = converted("adapters", key.hexdigest()[:16], write, holds=FACTS)
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    log.info("the base is %s with %s merged", parts.folder, " and ".join(map(_told, adapters)))
    parts.places |= {name: folder / name for name in facts["parts"]}


def write_merged(parts: PipelineParts, adapters: Sequence[BaseAdapter], folder: Path) -> None:
    """Write the parts that adapters change, in the type of their files, and which these are."""
    networks = {DENOISER: parts.empty(parts.denoiser)}
    networks |= {name: parts.empty(name) for name in parts.names("text_encoder")}
    found = [(adapter, read_lora(adapter.file, networks, "model.adapters")) for adapter in adapters]
    changed = sorted({part for _, of_parts in found for part in of_parts})
    names = {DENOISER: parts.denoiser}
    for part in changed:
        network: Any = parts.plain(names.get(part, part))
        for adapter, layers in found:
            if part in layers:
                merge_into(network, layers[part], adapter.scale, adapter.setting)
        network.save_pretrained(folder / names.get(part, part))
    facts = {
        "base": str(parts.folder),
        "parts": [names.get(part, part) for part in changed],
        "adapters": [
            {"file": str(adapter.file), "scale": adapter.scale, "layers": _counts(layers.items())}
            for adapter, layers in found
        ],
    }
    (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _counts(layers: Iterable[tuple[str, AnyLayers]]) -> dict[str, int]:
    return {part: len(of_part) for part, of_part in layers}


def _told(adapter: BaseAdapter) -> str:
    return str(adapter.file) if adapter.scale == 1 else f"{adapter.file} (scale {adapter.scale:g})"


def refuse_changed(adapters: Sequence[str] | str, recorded: Sequence[Any] | None) -> None:
    """Raise ConfigError if a file is another one than a run was trained on. recorded: what its run.json says."""
    for now, before in zip(adapter_facts(adapters), recorded or (), strict=False):
        if not isinstance(before, dict) or now["sha256"] != before.get("sha256"):
            raise ConfigError(
                f"{now['file']} has changed since the run was trained on it (model.adapters); restore it from a copy"
            )


def adapter_facts(adapters: Sequence[str] | str | None) -> list[dict[str, Any]]:
    """What run.json says of the adapters in a base: file, scale and the file's hash."""
    return [
        {"file": str(each.file), "scale": each.scale, "sha256": hashlib.sha256(each.file.read_bytes()).hexdigest()}
        for each in parse_adapters(adapters)
    ]
