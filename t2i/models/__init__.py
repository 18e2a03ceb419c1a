"""Model families, one file each, behind the same seam: `encode`, `embed`, `denoise`, `decode`, `pipeline`."""

from pathlib import Path

BUNDLED = {"tiny": Path(__file__).resolve().parent.parent / "tiny" / "pipeline"}


def locate(path: str | Path) -> str:
    """The folder of a bundled pipeline, a local folder in the Diffusers layout, or a Hub id, as Diffusers takes it.

    A path that looks local (it begins with `.`, `/` or `~`, or exists) must hold a pipeline: Diffusers would otherwise
    ask the Hub for it and say that no such repository exists.
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


def hide_loading_bars() -> None:
    """Loading takes a second; bars of every library for it would bury what the user should see."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
