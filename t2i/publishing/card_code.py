"""The lines of Python on a model card that load what a run has exported."""

import json
from collections.abc import Mapping, Sequence

from omegaconf import DictConfig

from t2i.models.base_adapters import split_scale
from t2i.models.lora_files import PEFT
from t2i.models.lora_settings import AVERAGED
from t2i.models.new_tokens import FOLDER, NAMES


def use_pipeline(repo: str, absent: Sequence[str] = ()) -> str:
    arguments = [literal(repo), *(f"{name}=None" for name in absent)]
    return f"""from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained({", ".join(arguments)})"""


def use_base(model: DictConfig) -> str:
    """Lines that make of a pipeline the base that was trained on: with another autoencoder, and adapters merged."""
    lines = []
    if vae := model.get("vae"):
        lines = ["from diffusers import AutoencoderKL", f"pipeline.vae = AutoencoderKL.from_pretrained({literal(vae)})"]
    for file, scale in map(split_scale, map(str, model.get("adapters") or ())):
        lines += [f"pipeline.load_lora_weights({literal(file)})", f"pipeline.fuse_lora(lora_scale={scale:g})"]
        lines.append("pipeline.unload_lora_weights()")
    return "".join(f"{line}\n" for line in lines)


def use_words(repo: str, words: Mapping[str, bool]) -> list[str]:
    """Lines that load new words. words: as `words_in` returns them."""
    lines = []
    for file, of_two_encoders in words.items():
        if not of_two_encoders:
            place = f"weight_name={literal(file)}, subfolder={literal(FOLDER)}"
            lines.append(f"pipeline.load_textual_inversion({literal(repo)}, {place})")
            continue
        lines += ["from huggingface_hub import hf_hub_download", "from safetensors import safe_open"]
        lines.append(f"with safe_open(hf_hub_download({literal(repo)}, {literal(f'{FOLDER}/{file}')}), 'pt') as file:")
        for name, key in NAMES.items():
            parts = f"text_encoder=pipeline.{name}, tokenizer=pipeline.{name.replace('text_encoder', 'tokenizer')}"
            word = 'token=file.metadata()["token"]'
            lines.append(f'    pipeline.load_textual_inversion(file.get_tensor("{key}"), {word}, {parts})')
    return lines


def use_adapter(
    base: str,
    repo: str,
    scheduler: str,
    more: str = "",
    networks: Sequence[str] = (),
    files: Sequence[str] = (AVERAGED,),
) -> str:
    """more: lines of `use_base`. networks: those whose adapters peft loads; none: Diffusers loads `files`."""
    load = [f'pipeline.load_lora_weights({literal(repo)}, weight_name="{file}")' for file in files]
    if networks:
        read = "pipeline.{0} = PeftModel.from_pretrained(pipeline.{0}, {1}, subfolder={2})"
        load = [read.format(name, literal(repo), literal(f"{PEFT}/{name}")) for name in networks]
    imports = [f"from diffusers import DiffusionPipeline, {scheduler}"]
    return "\n".join(
        [
            *(*imports, *(["from peft import PeftModel"] if networks else []), ""),
            f"pipeline = DiffusionPipeline.from_pretrained({literal(base)})",
            f'{more}pipeline.scheduler = {scheduler}.from_pretrained({literal(repo)}, subfolder="scheduler")',
            *load,
        ]
    )


def literal(text: str) -> str:
    """Text as a string of Python's: its quotes and line breaks end nothing."""
    return json.dumps(str(text), ensure_ascii=False)
