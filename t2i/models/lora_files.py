"""LoRA weights in files: as Diffusers and peft name them, and as kohya's sd-scripts do.

The second is what ComfyUI, Automatic1111 and Forge read. Its names are those of `comfy/lora.py` (model_lora_keys_unet,
model_lora_keys_clip), `networks/lora.py` of kohya-ss/sd-scripts, and `lora_conversion_utils.py` of Diffusers.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from t2i.models.portable import CLIP_PREFIX, original_keys

KOHYA = "kohya_lora.safetensors"
UNET = "lora_unet_"


@dataclass(frozen=True)
class LowRank:
    """The adapter of a layer: W + alpha / rank · up · down, and the length of W's rows if it is a DoRA."""

    down: Tensor  # [rank, in], or [rank, in, height, width] of a convolution
    up: Tensor  # [out, rank], or [out, rank, 1, 1]
    alpha: float
    magnitude: Tensor | None = None  # [out], or [1, out, 1, 1]

    @property
    def rank(self) -> int:
        return self.down.shape[0]


Layers = dict[str, LowRank]  # by the name of the layer in its network


def lora_layers(network: nn.Module) -> dict[str, Any]:
    """The layers of a network that have LoRA matrices, by their names."""
    from peft.tuners.lora import LoraLayer

    return {name: layer for name, layer in network.named_modules() if isinstance(layer, LoraLayer)}


def low_rank(network: nn.Module) -> Layers:
    """The adapters that peft has added to a network, without their initial value where that was taken off the base."""
    layers = {}
    for name, layer in lora_layers(network).items():
        down, up = (matrices["default"].weight.detach() for matrices in (layer.lora_A, layer.lora_B))
        if (initial := getattr(layer, "taken_off_the_base", None)) is not None:
            down, up = torch.cat([down, initial[0].to(down)]), torch.cat([up, -initial[1].to(up)], dim=1)
        magnitudes = layer.lora_magnitude_vector
        magnitude = magnitudes["default"].weight.detach() if "default" in magnitudes else None
        layers[name] = LowRank(down, up, layer.scaling["default"] * down.shape[0], magnitude)
    return layers


def peft_weights(layers: Layers) -> dict[str, Tensor]:
    """The adapters by the names under which peft trains them."""
    weights = {}
    for name, layer in layers.items():
        weights |= {f"{name}.lora_A.default.weight": layer.down, f"{name}.lora_B.default.weight": layer.up}
        if layer.magnitude is not None:
            weights[f"{name}.lora_magnitude_vector.default.weight"] = layer.magnitude
    return weights


def adapted_parts(pipeline: Any) -> dict[str, nn.Module]:
    return {name: part for name, part in pipeline.components.items() if getattr(part, "peft_config", None)}


def write_diffusers(pipeline: Any, file: Path) -> None:
    """Write what `load_lora_weights` reads, with alpha / rank in the weights, as few tools look for an alpha there."""
    state, settings = {}, {}
    for part, network in adapted_parts(pipeline).items():
        layers = low_rank(network)
        for name, layer in original_keys(network, layers).items():
            state[f"{part}.{name}.lora_A.weight"] = layer.down
            state[f"{part}.{name}.lora_B.weight"] = layer.up * _scale(layer)
            if layer.magnitude is not None:
                state[f"{part}.{name}.lora_magnitude_vector"] = layer.magnitude
        settings |= {f"{part}.{key}": value for key, value in _settings(layers).items()}
    _save(state, file, {"lora_adapter_metadata": json.dumps(settings, indent=2, sort_keys=True)})


def _usual(values: list[Any]) -> Any:
    """The commonest value, the first of several."""
    return max(values, key=values.count)


def _scale(layer: LowRank) -> float:
    return layer.alpha / layer.rank


def _settings(layers: Mapping[str, LowRank]) -> dict[str, Any]:
    """What peft's LoraConfig is made of: no more than its versions since 2024 have in common.

    Layers are named by their ends, which fit with and without the prefix that versions of Transformers differ in.
    """
    layers = {name.removeprefix(CLIP_PREFIX): layer for name, layer in layers.items()}
    usual = _usual([layer.rank for layer in layers.values()])
    others = {name: layer.rank for name, layer in layers.items() if layer.rank != usual}
    return {
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(layers),
        "use_dora": any(layer.magnitude is not None for layer in layers.values()),
    }


def write_kohya(pipeline: Any, file: Path) -> bool:
    """Write the file of kohya's scripts; false where they have no names for the layers.

    Alpha is as it is. Where layers differ in it (`adapter.rank_pattern`) all get the commonest one, and the rest goes
    into the weights: Diffusers misreads text encoders with several alphas.
    """
    parts = adapted_parts(pipeline)
    prefixes = kohya_prefixes(pipeline.components)
    if not parts.keys() <= prefixes.keys():
        return False
    state, layers = {}, {}
    for part, network in parts.items():
        named = original_keys(network, low_rank(network))
        layers |= {prefixes[part] + name.replace(".", "_"): layer for name, layer in named.items()}
    alpha = _usual([layer.alpha for layer in layers.values()])
    for name, layer in layers.items():
        up = layer.up if layer.alpha == alpha else layer.up * (layer.alpha / alpha)
        state[f"{name}.lora_down.weight"], state[f"{name}.lora_up.weight"] = layer.down, up
        state[f"{name}.alpha"] = torch.tensor(alpha)
        if layer.magnitude is not None:
            state[f"{name}.dora_scale"] = layer.magnitude.reshape(-1, *[1] * (layer.down.ndim - 1))
    _save(state, file, kohya_metadata(pipeline, layers, alpha))
    return True


def kohya_prefixes(components: Mapping[str, Any]) -> dict[str, str]:
    """The part of a Stable Diffusion pipeline -> the beginning of its layers' names."""
    if not components.get("unet"):
        return {}
    two = components.get("text_encoder_2") is not None
    return {"unet": UNET, "text_encoder": "lora_te1_" if two else "lora_te_", "text_encoder_2": "lora_te2_"}


def kohya_metadata(pipeline: Any, layers: Mapping[str, LowRank], alpha: float) -> dict[str, str]:
    """What tools show of such a file: the keys ss_... of sd-scripts, and those of Stability's model specification."""
    rank = _usual([layer.rank for layer in layers.values()])
    dora = any(layer.magnitude is not None for layer in layers.values())
    version, architecture = version_of(pipeline)
    arguments = {"algo": "lora", "dora_wd": "True"} if dora else {}
    return {
        "ss_network_module": "lycoris.kohya" if dora else "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{alpha:g}",
        "ss_network_args": json.dumps(arguments),
        "ss_base_model_version": version,
        "ss_v2": str(version.startswith("sd_v2")),
        "ss_training_comment": "trained with t2i",
        **specification(pipeline, f"{architecture}/lora"),
    }


def version_of(pipeline: Any) -> tuple[str, str]:
    """Which Stable Diffusion it is, as sd-scripts and as Stability's model specification call it."""
    components = pipeline.components
    if components.get("text_encoder_2") is not None:
        return "sdxl_base_v1-0", "stable-diffusion-xl-v1-base"
    if components["text_encoder"].config.hidden_act == "gelu":  # OpenCLIP's; OpenAI's has quick_gelu
        predicts_v = predicts(pipeline) == "v"
        return ("sd_v2_v", "stable-diffusion-v2-768-v") if predicts_v else ("sd_v2", "stable-diffusion-v2-512")
    return "sd_v1", "stable-diffusion-v1"


def predicts(pipeline: Any) -> str:
    """What the denoiser predicts, in the words of the model specification."""
    kind = pipeline.scheduler.config.get("prediction_type", "epsilon") if pipeline.scheduler else "epsilon"
    return {"v_prediction": "v"}.get(kind, kind)


def specification(pipeline: Any, architecture: str) -> dict[str, str]:
    """Metadata by github.com/Stability-AI/ModelSpec, version 1.0.0, as far as it is known here."""
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.prediction_type": predicts(pipeline),
    }


def _save(state: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().float().cpu().contiguous().clone() for name, tensor in state.items()}
    save_file(weights, file, {"format": "pt", **metadata})
