"""Adapters in files: as Diffusers and peft name them, and as kohya's sd-scripts and LyCORIS do.

The second is what ComfyUI, Automatic1111 and Forge read. Its names are those of `comfy/lora.py` (model_lora_keys_unet,
model_lora_keys_clip), `networks/lora.py` of kohya-ss/sd-scripts, and `lora_conversion_utils.py` of Diffusers.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from t2i.models.adapter_kinds import Factors
from t2i.models.low_rank import AnyLayers, LowRank, adapters, factors
from t2i.models.portable import CLIP_PREFIX, original_keys

KOHYA = "kohya_lora.safetensors"
UNET = "lora_unet_"
PEFT = "peft"  # the folder of peft's own files


def adapted_parts(pipeline: Any) -> dict[str, nn.Module]:
    return {name: part for name, part in pipeline.components.items() if getattr(part, "peft_config", None)}


def write_diffusers(pipeline: Any, file: Path) -> None:
    """Write all adapters of a pipeline in one file, which `load_lora_weights` reads if they are LoRA, or LoKr."""
    state, settings = {}, {}
    for part, network in adapted_parts(pipeline).items():
        layers = adapters(network)
        for name, layer in original_keys(network, layers).items():
            state |= {f"{part}.{name}.{weight}": value for weight, value in layer.in_diffusers().items()}
        settings |= {f"{part}.{key}": value for key, value in _settings(layers).items()}
    _save(state, file, {"lora_adapter_metadata": json.dumps(settings, indent=2, sort_keys=True)})


def write_peft(pipeline: Any, folder: Path) -> None:
    """Write a folder for each network, which `PeftModel.from_pretrained(network, folder)` reads. Not for LoRA."""
    for part, network in adapted_parts(pipeline).items():
        if not (layers := factors(network)):
            continue
        state = {
            f"base_model.model.{name}.{weight}": value
            for name, layer in layers.items()
            for weight, value in layer.in_diffusers().items()
        }
        _save(state, folder / part / "adapter_model.safetensors", {})
        config = next(iter(layers.values())).kind.config(layers, 0.0)
        config.inference_mode = True
        config.save_pretrained(folder / part)


def _usual(values: list[Any]) -> Any:
    """The commonest value, the first of several."""
    return max(values, key=values.count)


def _settings(layers: AnyLayers) -> dict[str, Any]:
    """What peft's configuration is made of, where it is not the default.

    Layers are named by their ends, which fit with and without the prefix that versions of Transformers differ in.
    """
    named: Any = {name.removeprefix(CLIP_PREFIX): layer for name, layer in layers.items()}
    if of_factors := {name: layer for name, layer in named.items() if isinstance(layer, Factors)}:
        return _changed(next(iter(of_factors.values())).kind.config(of_factors, 0.0))
    return _lora_settings(named)


def _changed(config: Any) -> dict[str, Any]:
    """The settings of peft that a file needs."""
    usual = type(config)().to_dict()
    changed = {key: value for key, value in config.to_dict().items() if value != usual[key]}
    return {**changed, "target_modules": sorted(config.target_modules)}


def _lora_settings(layers: Mapping[str, LowRank]) -> dict[str, Any]:
    """Of LoraConfig, no more than its versions since 2024 have in common."""
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
    """Write the file of kohya's scripts, or of LyCORIS; false where they have no names for the layers or weights."""
    parts = adapted_parts(pipeline)
    prefixes = kohya_prefixes(pipeline.components)
    if not parts.keys() <= prefixes.keys():
        return False
    layers: Any = {}
    for part, network in parts.items():
        named = original_keys(network, adapters(network))
        layers |= {prefixes[part] + name.replace(".", "_"): layer for name, layer in named.items()}
    if isinstance(first := next(iter(layers.values())), Factors):
        if first.kind.lycoris is None:
            return False
        _save(_lycoris(layers), file, kohya_metadata(pipeline, layers, first.alpha or 1.0))
        return True
    alpha = _usual([layer.alpha for layer in layers.values()])
    _save(_kohya(layers, alpha), file, kohya_metadata(pipeline, layers, alpha))
    return True


def _kohya(layers: Mapping[str, LowRank], alpha: float) -> dict[str, Tensor]:
    """Alpha is as it is. Where layers differ in it (`adapter.rank_pattern`) all get this one, and the rest goes into
    the weights: Diffusers misreads text encoders with several alphas.
    """
    state = {}
    for name, layer in layers.items():
        up = layer.up if layer.alpha == alpha else layer.up * (layer.alpha / alpha)
        state[f"{name}.lora_down.weight"], state[f"{name}.lora_up.weight"] = layer.down, up
        state[f"{name}.alpha"] = torch.tensor(alpha)
        if layer.magnitude is not None:
            state[f"{name}.dora_scale"] = layer.magnitude.reshape(-1, *[1] * (layer.down.ndim - 1))
    return state


def _lycoris(layers: Mapping[str, Factors]) -> dict[str, Tensor]:
    """Alpha of two complete factors of LoKr, which have no rank, means nothing; LyCORIS writes one as well."""
    state = {}
    for name, layer in layers.items():
        state |= {f"{name}.{weight}": value for weight, value in layer.tensors.items()}
        state[f"{name}.alpha"] = torch.tensor(float(layer.rank if layer.alpha is None else layer.alpha))
    return state


def kohya_prefixes(components: Mapping[str, Any]) -> dict[str, str]:
    """The part of a Stable Diffusion pipeline -> the beginning of its layers' names."""
    if not components.get("unet"):
        return {}
    two = components.get("text_encoder_2") is not None
    return {"unet": UNET, "text_encoder": "lora_te1_" if two else "lora_te_", "text_encoder_2": "lora_te2_"}


def kohya_metadata(pipeline: Any, layers: AnyLayers, alpha: float) -> dict[str, str]:
    """What tools show of such a file: the keys ss_... of sd-scripts, and those of Stability's model specification."""
    each = list(layers.values())
    rank, arguments = _usual([layer.rank for layer in each]), {}
    if isinstance(each[0], Factors):
        arguments = {"algo": str(each[0].kind.lycoris)}
    elif any(isinstance(layer, LowRank) and layer.magnitude is not None for layer in each):
        arguments = {"algo": "lora", "dora_wd": "True"}
    version, architecture = version_of(pipeline)
    return {
        "ss_network_module": "lycoris.kohya" if arguments else "networks.lora",
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
