"""Files of LoRA weights by kohya's scripts, Diffusers and peft, as adapters of a network's layers."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from t2i.config import ConfigError
from t2i.models.adapter_kinds import KINDS, Factors, kind_of
from t2i.models.lora_files import UNET
from t2i.models.low_rank import AnyLayers, LowRank
from t2i.models.original_names import unet_names
from t2i.models.portable import CLIP_PREFIX
from t2i.runs.links import read_regular

DENOISER = "denoiser"
LARGEST = 10_000_000  # bytes of peft's settings
ENCODERS = {"lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2"}
ENDINGS = {  # the end of a weight's name -> what it is
    **dict.fromkeys(("lora_A.weight", "lora_down.weight", "lora.down.weight", "lora_A.default.weight"), "down"),
    **dict.fromkeys(("lora_B.weight", "lora_up.weight", "lora.up.weight", "lora_B.default.weight"), "up"),
    **dict.fromkeys(("lora_linear_layer.down.weight", "_lora.down.weight"), "down"),
    **dict.fromkeys(("lora_linear_layer.up.weight", "_lora.up.weight"), "up"),
    **dict.fromkeys(("lora_magnitude_vector", "lora_magnitude_vector.weight", "dora_scale"), "magnitude"),
    **{"alpha": "alpha"},
    **{weight: weight for kind in KINDS for weight in kind.weights},
}
OLD_NAMES = {".to_q_lora": ".to_q", ".to_k_lora": ".to_k", ".to_v_lora": ".to_v", ".to_out_lora": ".to_out.0"}
# Parts of a layer to which peft has added an adapter.
ADAPTER = re.compile(r"\.(base_layer|(lora|lokr|hada|oft|boft)_\w+)(\.|$)")
PEFT = "base_model.model."  # before the names of peft's own files


def check_file(path: str, setting: str = "adapter.path") -> None:
    """Refuse what can't be a file of adapters, without reading weights."""
    file = Path(path).expanduser()
    if file.is_dir():
        raise ConfigError(f"{setting}={path} is a folder; give the .safetensors file in it")
    if not file.is_file():
        raise ConfigError(f"{setting}={path}: there is no such file")
    if file.suffix != ".safetensors":
        raise ConfigError(f"{setting}={path} must be a .safetensors file: other files of weights can run code")


def read_lora(file: Path, networks: Mapping[str, nn.Module], setting: str = "adapter.path") -> dict[str, AnyLayers]:
    """The adapters in a file, by network and layer. networks: the `denoiser`, and text encoders by their names.

    setting: by which the file was chosen, if by one.

    Raises ConfigError if the file holds something else, or a layer that none of the networks has.
    """
    chosen = f"{setting}={file}" if setting else str(file)
    state, settings = _read(file.expanduser(), chosen)
    weights: dict[tuple[str, str], dict[str, Tensor]] = {}
    places = {part: _places(part, network) for part, network in networks.items()}
    for name, tensor in state.items():
        layer, kind = _split(name)
        if layer is None:
            raise ConfigError(f"{chosen} is not a LoRA that can be gone on with: it holds {name}")
        found = next(((part, known[layer]) for part, known in places.items() if layer in known), None)
        if found is None:
            raise ConfigError(f"{chosen} is for another model: this one has no layer {layer}")
        weights.setdefault(found, {})[kind] = tensor
    read: dict[str, Any] = {}
    for (part, layer), of_layer in weights.items():
        try:
            adapter = _adapter(of_layer, layer, settings.get(part, {}))
        except ConfigError as error:
            raise ConfigError(f"{chosen}: the adapter of {layer} {error}; use another file") from error
        if adapter is None:
            raise ConfigError(f"{chosen}: the adapter of {layer} is incomplete, or of a kind that t2i does not know")
        read.setdefault(part, {})[layer] = adapter
    if not read:
        raise ConfigError(f"{chosen} holds no adapters")
    if len(kinds := {_kind(layer) for layers in read.values() for layer in layers.values()}) > 1:
        raise ConfigError(f"{chosen} holds adapters of several kinds ({', '.join(sorted(kinds))}), which t2i can't use")
    return read


def is_lora(file: Path) -> bool:
    """Whether a file holds LoRA or DoRA, by the names of its weights. Raises what safetensors raises for others."""
    with safe_open(file, framework="pt") as opened:
        return kind_of(_split(name)[1] for name in opened.keys()) is None  # noqa: SIM118 it is no mapping


def kind_in(read: Mapping[str, AnyLayers]) -> str:
    """The kind of the adapters in a file, such as lora or lokr."""
    return next(_kind(layer) for layers in read.values() for layer in layers.values())


def _kind(layer: LowRank | Factors) -> str:
    return layer.kind.name if isinstance(layer, Factors) else "lora"


def _read(file: Path, chosen: str) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """The weights of a file, and the settings of its networks in Diffusers' metadata or in peft's file beside it."""
    try:
        with safe_open(file, framework="pt") as opened:
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 it is no mapping
            metadata = opened.metadata() or {}
        flat = _settings(metadata.get("lora_adapter_metadata") or "{}")
        own = _settings(settings_beside(file) or "{}")
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{chosen} can't be read ({error})") from error
    settings: dict[str, dict[str, Any]] = {DENOISER: own}
    for key, value in flat.items():
        part, _, name = key.partition(".")
        settings.setdefault(DENOISER if part in ("unet", "transformer") else part, {})[name] = value
    return state, settings


def settings_beside(file: Path) -> bytes:
    """Peft's own file of settings, in the folder of a file of adapters; nothing if there is none."""
    beside = file.expanduser().with_name("adapter_config.json")
    return read_regular(beside, LARGEST).encode() if beside.is_file() else b""


def _settings(text: str | bytes) -> dict[str, Any]:
    settings = json.loads(text)
    if not isinstance(settings, dict):
        raise ValueError("its settings are not an object")
    return settings


def _split(name: str) -> tuple[str | None, str]:
    """The layer that a weight adapts, as the file calls it, and what the weight is."""
    for ending, kind in ENDINGS.items():
        if ending.startswith("_") and name.endswith(ending):
            layer = name[: -len(ending)] + "_lora"
            old = next((end for end in OLD_NAMES if layer.endswith(end)), None)
            if old:
                return (layer.removesuffix(old) + OLD_NAMES[old]).replace(".processor.", "."), kind
        elif name.endswith(f".{ending}"):
            return name[: -len(ending) - 1].replace(".processor.", "."), kind
    return None, ""


def _places(part: str, network: nn.Module) -> dict[str, str]:
    """Every name that a file may give a layer of a network -> its name in the network."""
    modules = ((name, module) for name, module in network.named_modules() if not ADAPTER.search(name))
    layers = [name for name, module in modules if getattr(module, "weight", None) is not None]
    if part == DENOISER:
        return _denoiser_places(layers)
    clip = {CLIP_PREFIX + layer.removeprefix(CLIP_PREFIX): layer for layer in layers}
    prefixes = [prefix for prefix, encoder in ENCODERS.items() if encoder == part]
    places = {f"{part}.{layer}": layer for layer in layers} | {f"{part}.{name}": layer for name, layer in clip.items()}
    for prefix in prefixes:
        places |= {prefix + name.replace(".", "_"): layer for name, layer in clip.items()}
        places |= {prefix + layer.replace(".", "_"): layer for layer in layers}
    return places


def _denoiser_places(layers: Iterable[str]) -> dict[str, str]:
    layers = list(layers)
    places = {}
    for layer in layers:
        flat = layer.replace(".", "_")
        dotted = (f"unet.{layer}", f"transformer.{layer}", f"diffusion_model.{layer}", PEFT + layer, layer)
        places |= dict.fromkeys((*dotted, UNET + flat, f"lycoris_{flat}"), layer)
    if any(re.match(r"down_blocks\.0\.resnets", layer) for layer in layers):
        with suppress(ValueError):  # a UNet with layers that Stable Diffusion did not have
            original = unet_names(layers)  # those of sd-scripts for Stable Diffusion XL
            places |= {UNET + name.replace(".", "_"): layer for layer, name in original.items()}
    return places


def _adapter(weights: Mapping[str, Tensor], layer: str, settings: Mapping[str, Any]) -> LowRank | Factors | None:
    """None if weights are missing. Raises ConfigError for values that no training leaves behind."""
    is_lora, kind, alpha = {"down", "up"} <= weights.keys(), kind_of(weights), weights.get("alpha")
    if not is_lora and (kind is None or not weights.keys() <= {*kind.weights, "alpha"}):
        return None
    for name, value in weights.items():
        if not (value.is_floating_point() and value.float().isfinite().all()):
            raise ConfigError(f"holds weights that are no finite numbers ({name})")
        if name not in ("alpha", "magnitude") and value.ndim < 2:
            raise ConfigError(f"holds a matrix of the shape {list(value.shape)} ({name})")
    if is_lora:
        return _low_rank(weights, layer, settings)
    assert kind is not None
    tensors = {name: value.float() for name, value in weights.items() if name != "alpha"}
    return Factors(kind, tensors, None if alpha is None or not kind.scaled else _finite(alpha))


def _low_rank(weights: Mapping[str, Tensor], layer: str, settings: Mapping[str, Any]) -> LowRank:
    down = weights["down"].float()
    rank = down.shape[0]
    alpha = _finite(weights["alpha"]) if "alpha" in weights else _alpha(settings, layer, rank)
    magnitude = weights.get("magnitude")
    return LowRank(down, weights["up"].float(), alpha, None if magnitude is None else magnitude.float())


def _alpha(settings: Mapping[str, Any], layer: str, rank: int) -> float:
    """The alpha of a layer by peft's settings; by default the rank, as without settings."""
    alpha, patterns = settings.get("lora_alpha", rank), settings.get("alpha_pattern")
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        if layer == pattern or layer.endswith(f".{pattern}"):
            alpha = value
    return _finite(alpha) * (rank**0.5 if settings.get("use_rslora") else 1.0)


def _finite(alpha: Any) -> float:
    try:
        number = float(alpha)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ConfigError(f"has an alpha that is no number ({alpha!r:.40})") from error
    if not math.isfinite(number):
        raise ConfigError(f"has an alpha that is no finite number ({number})")
    return number
