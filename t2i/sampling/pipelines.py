"""Pipelines to sample from: opened from a run, a checkpoint, a folder or the Hub."""

import logging
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file

from t2i.config import ConfigError
from t2i.config.instantiate import build
from t2i.models.base_adapters import refuse_changed
from t2i.models.bases import adapters_of, base_of
from t2i.models.library_logs import hide_loading_bars, quiet
from t2i.models.loading import loading, locate
from t2i.models.loading_errors import naming_model
from t2i.models.lora_reading import DENOISER, is_lora, read_lora
from t2i.models.lora_settings import AVERAGED, RAW, refuse_foreign_settings
from t2i.models.model import Model
from t2i.models.model_folder import check_folder, check_index, check_tokenizer
from t2i.models.new_tokens import FOLDER, RAW_FOLDER, load_words
from t2i.models.parts import denoiser_of
from t2i.models.peft_layers import add_layers
from t2i.models.tokens import with_length
from t2i.optim.ema import exported_weights
from t2i.optim.trained_weights import hold_weights
from t2i.runs import checkpoints, config_file
from t2i.runs.config_file import read_config
from t2i.runs.folder import read_info
from t2i.runs.text import one_line

# What Diffusers and PEFT raise for weights or settings that are none of an adapter's.
REFUSALS = (SafetensorError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, OSError, ImportError)


def load_pipeline(source: str | Path, weights: str = "ema") -> Any:
    """Open a pipeline to sample from, on the GPU if there is one.

    source: a run folder (its exported model, or its newest checkpoint while the run is unfinished), a checkpoint, a
    pipeline folder, a Hub id, or the name of a bundled model. weights: ema or raw. LoRA weights are loaded into the
    base model that their run was trained on.
    """
    hide_loading_bars()
    folder = Path(source)
    folder = folder.resolve() if folder.is_dir() else folder
    if any((folder / "model" / file).exists() for file in ("model_index.json", AVERAGED, FOLDER)):
        folder = folder / "model"
    elif (folder / config_file.NAME).is_file():
        checkpoint = checkpoints.newest(folder / "checkpoints")
        if checkpoint is None:
            raise ConfigError(f"{folder} has neither a model/ folder nor a complete checkpoint yet")
        folder = checkpoint
    if (folder / "manifest.json").is_file():
        pipeline = _from_checkpoint(folder, weights)
    elif any((folder / file).exists() for file in (AVERAGED, FOLDER)):
        pipeline = _from_adapters(folder, weights)
    else:
        pipeline = _from_pretrained(folder if folder.is_dir() else source, weights)
    with naming_model(source, "loaded"):
        for name, part in pipeline.components.items():
            if name.startswith("tokenizer") and part is not None:
                encoder = pipeline.components.get(name.replace("tokenizer", "text_encoder"))
                check_tokenizer(with_length(part, encoder.config.to_dict() if encoder else {}))
    pipeline.set_progress_bar_config(disable=True)
    if denoiser_of(pipeline.components) == "transformer":  # whose text encoders may have been read in another type
        with quiet("diffusers.models.modeling_utils"):  # about parts to keep in float32, of which there are none
            pipeline.to(_dtype("transformer"))
    pipeline.tokens_trained_with = _tokens_trained_with(folder)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def _tokens_trained_with(folder: Path) -> int | None:
    """The length of a caption in the run that the model or checkpoint lies in; None where it is the pipeline's own."""
    run = next((parent for parent in folder.parents if (parent / config_file.NAME).is_file()), None)
    model = read_config(run).get("model") if run and folder.is_dir() else None
    return model.get("max_sequence_length") if isinstance(model, dict) else None


def _dtype(denoiser: str) -> torch.dtype:
    """The type to sample in: on a GPU half precision, in which the large text encoders overflow unless it is bf16."""
    if not torch.cuda.is_available():
        return torch.float32
    return torch.float16 if denoiser == "unet" else torch.bfloat16


def _from_pretrained(source: str | Path, weights: str) -> Any:
    with loading(str(source)):
        located = locate(source)
        parts: Any = DiffusionPipeline.load_config(located)
        check_index(source, parts)
        name = denoiser_of(parts)
        dtype, unused = _dtype(name), _unused(parts)
        fetched: Any = located if Path(located).is_dir() else DiffusionPipeline.download(located, **unused)
        check_folder(source, fetched, parts)
        pipeline: Any = DiffusionPipeline.from_pretrained(fetched, dtype=dtype, **unused)
    if weights == "raw" and list((Path(located) / name).glob("diffusion_pytorch_model.non_ema*.safetensors")):
        kind = type(pipeline.components[name])
        raw = kind.from_pretrained(located, subfolder=name, variant="non_ema", dtype=dtype)
        pipeline.register_modules(**{name: raw})
    return pipeline


def _unused(parts: dict[str, Any]) -> dict[str, None]:
    """The parts that a pipeline is opened without; Diffusers asks for some of those that it was saved without."""
    absent = [name for name, part in parts.items() if isinstance(part, (list, tuple)) and part and part[0] is None]
    return dict.fromkeys([*absent, *(["safety_checker"] if "safety_checker" in parts else [])])


def _config(run: Path) -> DictConfig:
    """The configuration of a run. It may be a stranger's, so its own allowed_targets are ignored."""
    cfg = OmegaConf.create(read_config(run))
    cfg.allowed_targets = []
    for key in ("model.path", "model.config", "model.vae", "scheduler.path", "scheduler.config"):
        if isinstance(path := OmegaConf.select(cfg, key), str):  # it may have moved with the run
            OmegaConf.update(cfg, key, base_of(run, path))
    if adapters := OmegaConf.select(cfg, "model.adapters"):
        cfg.model.adapters = adapters_of(run, adapters)
        refuse_changed(cfg.model.adapters, read_info(run).get("base_adapters"))
    return cfg


def _model(cfg: DictConfig) -> Model:
    model: Model = build(cfg, "model")
    model.hold(_dtype("transformer"))
    return model


def _from_adapters(folder: Path, weights: str) -> Any:
    """The base model of a run with the run's adapters and new words loaded; `folder` is the run's model/."""
    cfg = _config(folder.parent)
    pipeline = _model(cfg).pipeline(build(cfg, "scheduler"))
    names = [(AVERAGED, RAW), (FOLDER, RAW_FOLDER)]
    adapters, words = (folder / (raw if weights == "raw" and (folder / raw).exists() else own) for own, raw in names)
    remedy = "use a checkpoint of the run"
    if adapters.is_file():
        plain = not cfg.model.get("quantize")  # DoRA would move a base in 8 bits to the device meta
        _load_adapter(pipeline, adapters, remedy, low_cpu_mem_usage=plain)
    if words.is_dir():
        try:
            load_words(pipeline, words)
        except REFUSALS as error:
            raise ConfigError(f"{words} can't be loaded ({one_line(error)}); {remedy}") from error
    return pipeline


def load_on_base(base: str, adapter: Path) -> Any:
    """A base model, as `load_pipeline` opens it, with the LoRA weights of a .safetensors file."""
    pipeline = load_pipeline(base)
    _load_adapter(pipeline, adapter, f"it must be a LoRA for {base}")
    return pipeline


def _load_adapter(pipeline: Any, file: Path, remedy: str, **options: Any) -> None:
    # Diffusers would warn that the text encoder has no LoRA weights.
    logging.getLogger("diffusers.loaders.lora_base").setLevel(logging.ERROR)
    try:
        if not is_lora(file):
            _add_adapters(pipeline, file)
            return
        refuse_foreign_settings(file)
        pipeline.load_lora_weights(file.parent, weight_name=file.name, **options)
    except REFUSALS as error:
        raise ConfigError(f"{file} can't be loaded ({one_line(error)}); {remedy}") from error


def _add_adapters(pipeline: Any, file: Path) -> None:
    """Adapters that Diffusers does not load."""
    parts = pipeline.components
    encoders = {name: part for name, part in parts.items() if name.startswith("text_encoder") and part is not None}
    networks = {DENOISER: parts[denoiser_of(parts)], **encoders}
    for part, layers in read_lora(file, networks, "").items():
        add_layers(networks[part], layers, str(file))


def _from_checkpoint(checkpoint: Path, weights: str) -> Any:
    cfg = _config(checkpoint.parent.parent)
    model = build(cfg, "adapter").attach(_model(cfg))
    file = checkpoint / ("denoiser.safetensors" if weights == "raw" else "ema.safetensors")
    if not file.is_file():
        raise ConfigError(f"{checkpoint} has no averaged weights (the run has ema=none); use --weights raw")
    try:
        hold_weights(model.denoiser).load_state_dict(exported_weights(load_file(file)))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{file} can't be loaded ({reason}); use another checkpoint of the run") from error
    return model.pipeline(build(cfg, "scheduler"))
