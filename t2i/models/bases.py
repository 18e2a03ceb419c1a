"""Runs as the base of the next: the pipeline that a run exported, or its base with its adapters merged."""

import hashlib
import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from t2i.config import PACKAGE, ConfigError
from t2i.config.model_size import BUNDLED
from t2i.models.converted import converted
from t2i.models.library_logs import hide_loading_bars, quiet
from t2i.models.lora_settings import AVERAGED, refuse_foreign_settings
from t2i.models.model_folder import check_folder, check_index
from t2i.models.portable import make_portable
from t2i.models.single_file_base import is_single_file, pipeline_of_file
from t2i.runs import config_file
from t2i.runs.config_file import read_config

log = logging.getLogger(__name__)

TINY = PACKAGE / "tiny"


def is_run(folder: Path) -> bool:
    return (folder / config_file.NAME).is_file() and not (folder / "model_index.json").is_file()


def pipeline_of_run(run: Path) -> Path:
    """The folder of the pipeline that a run trained, whose adapters are merged; that is done once, in the cache."""
    model = run / "model"
    if (model / "model_index.json").is_file():
        return model
    if not (model / AVERAGED).is_file():
        raise ConfigError(
            f"model.path={run} is a run without a model that can be a base: it has not finished, or its adapters can't "
            "be merged; finish it with the same command, or choose another"
        )
    path = base_of(run, str(read_config(run)["model"]["path"]))
    base = str(BUNDLED.get(path, Path(path).expanduser().resolve() if Path(path).expanduser().is_dir() else path))
    key = hashlib.sha256(base.encode())
    key.update((model / AVERAGED).read_bytes())
    return converted("merged", key.hexdigest()[:16], partial(_merge, run, base))


def base_of(run: Path, path: str) -> str:
    """The base of a run, wherever run and base have moved together: a relative path is sought from where it began.

    That is the present folder, the one in which the command was given, or the one that multirun/ lies in. A path that
    is in none of them is returned as it is: it may be the name of a bundled model, or of one on the Hub.
    """
    if Path(path).expanduser().is_absolute() or Path(path).exists():
        return path
    around = [folder.parent for folder in run.resolve().parents if folder.name == "multirun"]
    for folder in filter(None, (_began_in(run), *around)):
        if (folder / path).is_dir() or (folder / path).is_file():
            return str(folder / path)
    return path


def _began_in(run: Path) -> Path | None:
    """The folder in which the command of a run was given, by Hydra's record."""
    try:
        content = yaml.safe_load((run / ".hydra" / "hydra.yaml").read_text(encoding="utf-8"))
        return Path(content["hydra"]["runtime"]["cwd"])
    except (OSError, ValueError, TypeError, LookupError, yaml.YAMLError):
        return None


def _merge(run: Path, base: str, folder: Path) -> None:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    log.info("merging the adapters of %s into %s, once", run, base)
    adapters = run / "model" / AVERAGED
    config = read_config(run)["model"].get("config")
    if is_single_file(base):
        base = str(pipeline_of_file(Path(base), base_of(run, config) if config else None))
    if is_run(Path(base)):
        base = str(pipeline_of_run(Path(base)))
    index: Any = DiffusionPipeline.load_config(base)
    check_index(base, index)
    refuse_foreign_settings(adapters)
    absent = [name for name, part in index.items() if isinstance(part, (list, tuple)) and part and part[0] is None]
    unused = dict.fromkeys([*absent, *(["safety_checker"] if "safety_checker" in index else [])])
    fetched: Any = base if Path(base).is_dir() else DiffusionPipeline.download(base, **unused)
    check_folder(base, fetched, index)
    hide_loading_bars()
    pipeline: Any = DiffusionPipeline.from_pretrained(fetched, use_safetensors=True, **unused)
    with quiet("diffusers.loaders.lora_base"):  # that there are no adapters of text encoders
        pipeline.load_lora_weights(adapters.parent, weight_name=adapters.name)
    adapted = [name for name, part in pipeline.components.items() if getattr(part, "peft_config", None)]
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    pipeline.save_pretrained(folder)
    make_portable(pipeline, folder)
    for part in folder.iterdir():  # what is as it was stays byte for byte, so that nothing is encoded anew
        if part.is_dir() and part.name not in adapted and (Path(fetched) / part.name).is_dir():
            shutil.rmtree(part)
            shutil.copytree(Path(fetched) / part.name, part)
    shutil.rmtree(folder / "scheduler", ignore_errors=True)
    shutil.copytree(run / "model" / "scheduler", folder / "scheduler")
