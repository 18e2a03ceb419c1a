"""Images of a class that the base draws before it is trained, for prior preservation (Ruiz et al. 2022)."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from accelerate import Accelerator
from omegaconf import DictConfig, OmegaConf

from t2i.config.instantiate import build, resolve
from t2i.data.folder_files import walk
from t2i.data.images import SUFFIXES
from t2i.data.sources import class_request
from t2i.data.splits import Captioned
from t2i.experiment.drawn_images import Base


def load_data(cfg: DictConfig, accelerator: Accelerator) -> Captioned:
    """The data set of a configuration. Class images that are missing are drawn first, once for all runs."""
    return build(_with_class_images(cfg, accelerator), "dataset")


def _with_class_images(cfg: DictConfig, accelerator: Accelerator) -> DictConfig:
    """The configuration with the folders of all class images."""
    sources = OmegaConf.select(cfg, "dataset.sources")
    if sources is None:
        return cfg
    given = resolve(sources)
    names = list(given) if isinstance(given, Mapping) else range(len(given))
    requests = {name: class_request(f"dataset.sources.{name}", given[name]) for name in names}
    wanted = {name: request for name, request in requests.items() if request is not None}
    if not wanted:
        return cfg
    base = Base(cfg, accelerator)
    cfg = cfg.copy()
    for name, request in wanted.items():
        folder = base.folder("class_images", prompt=request.prompt)
        number = max(0, request.number - _images_in(given[name].get("path")))
        base.draw_missing(folder, [(request.prompt, i) for i in range(number)])
        OmegaConf.update(cfg, f"dataset.sources[{name}].class_folder", str(folder), force_add=True)
    return cfg


def _images_in(path: str | None) -> int:
    """How many images a source has of its own."""
    root = Path(path or "").expanduser()
    if path is None or not root.is_dir():  # a folder that does not exist is told of when it is read
        return 0
    return sum(PurePosixPath(name).suffix.lower() in SUFFIXES for name in walk(root, follow_links=False).stats)
