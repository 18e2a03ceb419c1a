"""What a file of LoRA weights may say in its settings, which peft follows."""

import json
from pathlib import Path

from safetensors import safe_open

AVERAGED, RAW = "pytorch_lora_weights.safetensors", "pytorch_lora_weights.non_ema.safetensors"
EXPORTED = (  # settings of peft that differ from its defaults in an export, or from one version to the next
    *("r", "lora_alpha", "lora_dropout", "use_dora", "target_modules", "init_lora_weights", "peft_type"),
    *("peft_version", "inference_mode", "qalora_group_size"),
    "base_model_name_or_path",  # of text encoders, in exports of 0.1.0
)


def refuse_foreign_settings(file: Path) -> None:
    """Raise ValueError for settings of adapters that no export has: peft imports modules that some of them name."""
    from peft import LoraConfig

    usual = LoraConfig().to_dict()
    with safe_open(file, framework="pt") as opened:
        settings = json.loads((opened.metadata() or {}).get("lora_adapter_metadata") or "{}")
    for key, value in settings.items():
        name = key.rpartition(".")[2]
        if value and name not in EXPORTED and value != usual.get(name):
            raise ValueError(f"{key} is set, which t2i does not export")
    for key in ("target_modules", "exclude_modules"):
        if any(isinstance(value, str) for name, value in settings.items() if name.endswith(f".{key}")):
            raise ValueError(f"{key} is a pattern instead of a list of names")
