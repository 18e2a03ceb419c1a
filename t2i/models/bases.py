"""Runs as the base of the next: the pipeline that a run exported, or its base with its adapters merged."""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from t2i.config import PACKAGE, ConfigError
from t2i.config.model_size import BUNDLED
from t2i.models.base_adapters import parse_adapters, split_scale, write_merged
from t2i.models.base_vae import use_vae
from t2i.models.converted import converted
from t2i.models.lora_settings import AVERAGED
from t2i.models.model_folder import check_folder, check_index
from t2i.models.parts import PipelineParts
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


def adapters_of(run: Path, adapters: Sequence[str]) -> list[str]:
    """The adapters in the base of a run, wherever they have moved to with it; see `base_of`."""
    places = ((base_of(run, place), scale) for place, scale in map(split_scale, map(str, adapters)))
    return [place if scale == 1 else f"{place}:{scale}" for place, scale in places]


def _merge(run: Path, base: str, folder: Path) -> None:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    log.info("merging the adapters of %s into %s, once", run, base)
    settings = read_config(run)["model"]
    if is_single_file(base):
        config = settings.get("config")
        base = str(pipeline_of_file(Path(base), base_of(run, config) if config else None))
    if is_run(Path(base)):
        base = str(pipeline_of_run(Path(base)))
    index: Any = DiffusionPipeline.load_config(base)
    check_index(base, index)
    absent = [name for name, part in index.items() if isinstance(part, (list, tuple)) and part and part[0] is None]
    unused = dict.fromkeys([*absent, *(["safety_checker"] if "safety_checker" in index else [])])
    fetched: Any = base if Path(base).is_dir() else DiffusionPipeline.download(base, **unused)
    check_folder(base, fetched, index)
    parts = _parts(fetched, {name: part for name, part in index.items() if name not in unused})
    if vae := settings.get("vae"):
        use_vae(parts, base_of(run, vae))
    own = [*adapters_of(run, settings.get("adapters") or []), str(run / "model" / AVERAGED)]
    write_merged(parts, parse_adapters(own), folder)
    changed = {place.name for place in folder.iterdir()}
    for name, part in index.items():  # what is as it was stays byte for byte, so that nothing is encoded anew
        if isinstance(part, (list, tuple)) and name not in (*changed, *unused, "scheduler"):
            shutil.copytree(parts.where(name), folder / name)
    shutil.copytree(run / "model" / "scheduler", folder / "scheduler")
    saved = {**index, **{name: [None, None] for name in unused}}
    (folder / "model_index.json").write_text(json.dumps(saved, indent=2), encoding="utf-8")


def _parts(folder: str, index: Mapping[str, Any]) -> PipelineParts:
    """The networks of a pipeline, by the classes that its model_index.json names."""
    import diffusers
    import transformers

    libraries = {"diffusers": diffusers, "transformers": transformers}
    classes = {
        name: getattr(libraries[part[0]], part[1])
        for name, part in index.items()
        if isinstance(part, (list, tuple)) and part[0] in libraries
    }
    return PipelineParts(folder, classes, True, None, {})
