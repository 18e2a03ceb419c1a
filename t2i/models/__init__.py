"""Model families. Each file holds one family behind the same seam: `encode`, `embed`, `denoise`, `decode`, `pipeline`."""

import os
from pathlib import Path

# Transformers warns at import that torchvision is missing, which nothing here uses.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

BUNDLED = {"tiny": Path(__file__).resolve().parent.parent / "tiny" / "pipeline"}


def locate(path: str | Path) -> str:
    """The folder of a bundled pipeline, a local folder in the Diffusers layout, or a Hub id, as Diffusers takes it.

    A path that looks local (it begins with `.`, `/` or `~`, or exists) must hold a pipeline: Diffusers would otherwise ask
    the Hub for it and say that no such repository exists.
    """
    if str(path) in BUNDLED:
        return str(BUNDLED[str(path)])
    folder = Path(path).expanduser()
    looks_local = str(path).startswith((".", "/", "~")) or folder.is_dir()
    if looks_local and not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            f"model.path={path} holds no pipeline (no model_index.json); give a folder that save_pretrained wrote"
        )
    return str(folder) if looks_local else str(path)
