"""Where the files of a feature network are, and what they may hold: settings and safetensors, and no code."""

from pathlib import Path

from t2i.config import ConfigError
from t2i.hub import check_reachable, is_repository, reason
from t2i.models.bases import TINY
from t2i.models.model_folder import leading_elsewhere
from t2i.runs.files import read_json

BUNDLED = {"tiny": TINY / "judge"}  # the small CLIP that was trained on OpenMoji
BUNDLED_TOKENIZERS = {"tiny": TINY / "pipeline" / "tokenizer"}
SETTINGS = ("*.json", "*.txt", "*.model")  # of a network and its tokenizer
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")


def find(setting: str, model: str, revision: str | None = None, weights: bool = True) -> Path:
    """The folder of a network: a bundled one, a local one, or what the Hub's cache holds; fetched if it is not there.

    setting: that names it, for the message of the ConfigError that is raised if it is nowhere. weights: whether they
    are needed, or the settings alone.
    """
    if model in BUNDLED:
        return BUNDLED[model]
    try:
        folder = Path(model).expanduser()
    except RuntimeError as error:  # ~NAME of nobody
        raise ConfigError(f"{setting}={model}: {error}; give the folder without ~") from error
    needed = "config.json" if weights else "preprocessor_config.json"
    if folder.is_dir() or not is_repository(model):
        if not (folder / needed).is_file():
            raise ConfigError(
                f"{setting}={model} is neither a folder with a {needed}, as save_pretrained writes it, nor the id of a "
                "network on the Hub (OWNER/NAME)"
            )
    else:
        folder = _fetched(setting, model, revision, weights)
    if weights and not any(file for pattern in WEIGHTS for file in folder.glob(pattern)):
        raise _without_weights(setting, model, folder)
    return folder


def _fetched(setting: str, model: str, revision: str | None, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    check_reachable(setting, model, "model")
    patterns = [*SETTINGS, *(WEIGHTS if weights else ())]
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the client raises its own errors, and those of its HTTP library
        version = f" --revision {revision}" if revision else ""
        raise ConfigError(
            f"{setting}={model} can't be fetched from the Hub: {reason(error)}; `hf download {model}{version}` fetches "
            f"it where the network allows, `--local-dir FOLDER` for {setting}=FOLDER"
        ) from error


def _without_weights(setting: str, model: str, folder: Path) -> ConfigError:
    """Weights that are not there, or in a format that could run code."""
    if any(folder.glob("*.bin")) or is_repository(model):
        owner = setting.rpartition(".")[0]
        return ConfigError(
            f"{setting}={model} has no weights in safetensors on this machine (model.safetensors); "
            f"`hf download {model}` fetches what the Hub has. If that is a pickle alone (pytorch_model.bin), which t2i "
            f"does not read, set {owner}.revision to a branch with safetensors, such as refs/pr/N of the Hub's "
            "conversion, or give a folder that save_pretrained wrote"
        )
    return ConfigError(
        f"{setting}={model} holds no weights (model.safetensors); give a folder that save_pretrained wrote"
    )


def check_settings(setting: str, model: str, folder: Path) -> dict:
    """The content of config.json. Raises ConfigError if a file of settings leads to code or files elsewhere."""
    read = {}
    for file in sorted(folder.glob("*.json")):
        if file.name == "config.json" or file.name.endswith(("_config.json", ".index.json")):
            read[file.name] = read_json(file, f"use another {setting}, or fetch {model} again")
            for key, text in leading_elsewhere(read[file.name], automatic=True):
                raise ConfigError(
                    f"{setting}={model} can't be loaded: its {file.name} leads to code or files that are not the "
                    f"network's ({key}: {text}); use another network, or a copy without this"
                )
    return read.get("config.json", {})
