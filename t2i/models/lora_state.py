"""LoRA files of any tool, as the weights that peft trains: read with Diffusers' converters, without a pipeline."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from torch import Tensor

from t2i.config import ConfigError
from t2i.models.lora_settings import refuse_foreign_settings

log = logging.getLogger(__name__)
DOWN = re.compile(r"\.lora_A\.weight$")


def read_lora(file: Path, pipeline: Any, name: str, denoiser_config: Any, scale: float) -> dict[str, Tensor]:
    """The adapters of a denoiser in a .safetensors file of Diffusers, peft or kohya, by the names of trained weights.

    pipeline: the class of the pipeline, which knows the formats. name: of the denoiser in it. scale: the run's alpha /
    rank; ConfigError if that of the file is another, as the same weights would then do something else.
    """
    try:
        refuse_foreign_settings(file)
        found = pipeline.lora_state_dict(
            file.parent,
            weight_name=file.name,
            unet_config=denoiser_config,
            use_safetensors=True,
            return_lora_metadata=True,
        )
    except Exception as error:  # the converters raise anything for what is no LoRA
        raise ConfigError(f"from={file} can't be read as LoRA weights ({' '.join(str(error).split())})") from error
    state, metadata = found[0], found[-1] or {}
    alphas = found[1] if len(found) == 3 else None
    own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
    if others := sorted(key for key in state if not key.startswith(f"{name}.")):
        log.warning("%s: what is not of the %s is not taken, such as %s", file, name, others[0])
    if own and not any("lora_A" in key for key in own):
        own = convert_unet_state_dict_to_peft(own)
    _check_scale(file, own, alphas or {}, metadata, name, scale)
    return {_trained(key): value.float() for key, value in own.items()}


def _trained(key: str) -> str:
    """The name under which peft trains a weight, in the adapter that it calls default."""
    key = re.sub(r"\.(lora_[AB])\.weight$", r".\1.default.weight", key)
    return f"{key}.default.weight" if key.endswith(".lora_magnitude_vector") else key


def _check_scale(
    file: Path,
    state: Mapping[str, Tensor],
    alphas: Mapping[str, float],
    metadata: Mapping[str, Any],
    name: str,
    scale: float,
) -> None:
    ranks = {DOWN.sub("", key): value.shape[0] for key, value in state.items() if DOWN.search(key)}
    scales = {1.0}  # Diffusers' rule for files that say nothing
    if alphas:
        given = {key.removeprefix(f"{name}.").removesuffix(".alpha"): float(value) for key, value in alphas.items()}
        scales = {given[layer] / rank for layer, rank in ranks.items() if layer in given} or scales
    elif (alpha := metadata.get(f"{name}.lora_alpha")) is not None:
        scales = {alpha / metadata.get(f"{name}.r", 1)}
    if any(abs(value - scale) > 1e-6 * abs(scale) for value in scales):
        rank = next(iter(ranks.values()), 0)
        shown = ", ".join(f"{value:g}" for value in sorted(scales))
        raise ConfigError(
            f"from={file}: its adapters are scaled by alpha / rank = {shown}, and those of this run by {scale:g}; use "
            f"adapter.alpha={max(scales) * rank:g} with adapter.rank={rank}"
        )
