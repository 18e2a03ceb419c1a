"""Pipelines in the Diffusers layout, whose parts are read when they are first used."""

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import nn

from t2i.config import ConfigError
from t2i.models.library_logs import hide_loading_bars
from t2i.models.loading import loading, locate
from t2i.models.model_folder import check_folder, check_index, check_tokenizer
from t2i.models.quantization import check_quantize
from t2i.models.shapes import FakeTensorMode, current_mode
from t2i.models.tokens import with_length

DENOISERS = ("unet", "transformer")  # the names that the part that is trained has
SISTERS = re.compile(r"(Img2Img|Inpaint|PAG)(?=Pipeline$)")  # pipelines with the parts of the one to train
CONVERT = (
    'its weights are .bin files, which can run code. If you trust them: python -c "from diffusers import '
    "DiffusionPipeline as P; P.from_pretrained('{folder}', use_safetensors=False).save_pretrained('NEW')\", then "
    "model.path=NEW"
)
WITHOUT_WEIGHTS = ["*.json", "*.txt", "*.jinja", "*/*.model"]  # settings and tokenizers


def denoiser_of(names: Iterable[str]) -> str:
    """The name of the denoiser among those of a pipeline's parts."""
    found = next((name for name in names if name in DENOISERS), None)
    if found is None:
        raise ValueError(f"it has neither a {' nor a '.join(DENOISERS)}")
    return found


class PipelineParts:
    """The parts of a pipeline by name, each read from the subfolder of its name when it is first used.

    All but the denoiser are in evaluation mode and without gradients. Weights are read from safetensors only.
    """

    def __init__(
        self,
        path: str,
        classes: Mapping[str, Any],
        pretrained: bool,
        variant: str | None,
        dtypes: Mapping[str, torch.dtype],
        quantize: str | None = None,
    ):
        """path: a folder. classes: the class of each part, by its name.

        pretrained: false gives the denoiser fresh weights, drawn from torch's seed. variant: which of several files of
        weights is read, such as fp16 for `model.fp16.safetensors`; None: the one without a variant. dtypes: the type in
        which a part's weights are read, by its name; float32 for those that are not named. quantize: nf4 or int8, in
        which the denoiser's linear layers are held; None: in their type.
        """
        self.folder, self.classes, self.pretrained, self.variant = Path(path), classes, pretrained, variant
        self.denoiser, self.dtypes, self.quantize = denoiser_of(classes), dict(dtypes), quantize
        self.absent: list[str] = []  # the parts of the pipeline that it was saved without
        self.device = torch.device("cpu")
        self.read: dict[str, Any] = {}
        self.shapes: FakeTensorMode | None = current_mode()  # whether networks have shapes only

    def __getitem__(self, name: str) -> Any:
        if name not in self.read:
            with loading(self.folder):
                self.read[name] = self._load(name)
        return self.read[name]

    def __setitem__(self, name: str, part: Any) -> None:
        self.read[name] = part

    def names(self, prefix: str) -> list[str]:
        return [name for name in self.classes if name.startswith(prefix)]

    def _load(self, name: str) -> Any:
        kind = self.classes[name]
        hide_loading_bars()
        if not _is_network(kind):
            part = kind.from_pretrained(self.folder, subfolder=name)
            encoder = name.replace("tokenizer", "text_encoder")
            if name.startswith("tokenizer") and encoder in self.classes:
                part = with_length(part, self.config(encoder))
            check_tokenizer(part)
            return part
        if self.shapes:
            return self._without_weights(kind, name)
        if name == self.denoiser and not self.pretrained:
            return kind.from_config(kind.load_config(self.folder, subfolder=name))
        dtype = self.dtypes.get(name, torch.float32)
        if name == self.denoiser and self.quantize:
            from t2i.models.quantized import read_quantized

            config = kind.load_config(self.folder, subfolder=name)
            return read_quantized(kind, config, self.files(name)[1:], dtype, self.quantize)
        weights = {"variant": self.variant, "use_safetensors": True, "dtype": dtype}
        part = kind.from_pretrained(self.folder, subfolder=name, **weights)
        if name == self.denoiser:
            return part
        flat = name == "vae" and all(weight.ndim <= 4 for weight in part.parameters())  # not an autoencoder of videos
        layout = torch.channels_last if flat else torch.preserve_format  # convolutions are faster this way
        return part.eval().requires_grad_(False).to(self.device, memory_format=layout)

    def _without_weights(self, kind: Any, name: str) -> nn.Module:
        with self.shapes or nullcontext():
            if hasattr(kind, "load_config"):  # of Diffusers, not of Transformers
                network = kind.from_config(kind.load_config(self.folder, subfolder=name))
            else:
                network = kind(kind.config_class.from_pretrained(self.folder, subfolder=name))
            for tensor in network.state_dict(keep_vars=True).values():  # what would be read from the files
                if tensor.is_floating_point():  # `to` of a module would exchange the tensors, which can't be done here
                    tensor.data = tensor.data.to(self.dtypes.get(name, torch.float32))
            return network if name == self.denoiser else network.eval().requires_grad_(False)

    def config(self, name: str) -> dict[str, Any]:
        """The settings of a part, without its weights."""
        with loading(self.folder):
            return json.loads((self.folder / name / "config.json").read_text())

    def files(self, name: str) -> list[Path]:
        """The files that determine what a network computes: its settings and its weights."""
        available = sorted((self.folder / name).glob("*.safetensors"))
        chosen = [file for file in available if _variant(file) == self.variant]
        if not chosen:
            what = f"safetensors of variant {self.variant}" if self.variant else "safetensors"
            other = any((self.folder / name).glob("*.bin"))
            raise ConfigError(
                f"model.path={self.folder} can't be loaded: no {what} in {name}/; "
                + (CONVERT.format(folder=self.folder) if other else "choose another model.variant")
            )
        return [self.folder / name / "config.json", *chosen]

    def to(self, device: torch.device) -> None:
        """Move the frozen networks to a device, including those that are read later."""
        self.device = device
        for name, part in self.read.items():
            if isinstance(part, nn.Module) and name != self.denoiser:
                part.to(device)

    def release(self) -> None:
        """Forget the networks that are not trained; they are read again when they are used again."""
        self.read = {
            name: part
            for name, part in self.read.items()
            if not isinstance(part, nn.Module) or any(weight.requires_grad for weight in part.parameters())
        }


def _check_sister(path: str, kind: str, denoiser: Mapping[str, Any]) -> None:
    taken, given = denoiser.get("in_channels"), denoiser.get("out_channels")
    if taken and given and taken != given:
        raise ConfigError(
            f"model.path={path} holds a {kind} whose denoiser takes {taken} channels, with those of a mask or of "
            "another image; t2i trains models that draw from text alone"
        )


def _is_network(kind: type) -> bool:
    return issubclass(kind, nn.Module)


def _variant(file: Path) -> str | None:
    """None for MODEL.safetensors; fp16 for MODEL.fp16.safetensors and MODEL.fp16-00001-of-00002.safetensors."""
    between = file.name.split(".")[1:-1]
    return between[0].partition("-")[0] if between else None


def open_pipeline(
    path: str,
    pipeline: Any,
    classes: Mapping[str, Any],
    pretrained: bool,
    revision: str | None,
    variant: str | None,
    dtypes: Mapping[str, torch.dtype] | None = None,
    quantize: str | None = None,
) -> tuple[PipelineParts, dict[str, Any]]:
    """The parts of a pipeline, none of which is read yet, and the contents of model_index.json.

    path: `tiny`, a local folder in the Diffusers layout, or a Hub id, whose files are fetched. pipeline: its class;
    ConfigError if the path holds another. classes: a part that the pipeline was saved without is left out. For the
    other parameters see `PipelineParts`. Inside of `shapes_only` files of weights are neither needed nor fetched.
    """
    check_quantize(quantize, pretrained)
    with loading(path):
        config = pipeline.load_config(locate(path), revision=revision)
        check_index(path, config)
    kind = str(config["_class_name"])
    if SISTERS.sub("", kind) != pipeline.__name__:
        raise ConfigError(
            f"model.path={path} holds a {kind}, not a {pipeline.__name__}; choose the option of model that suits it"
        )
    absent = [name for name in classes if config.get(name, (name,))[0] is None]
    classes = {name: kind for name, kind in classes.items() if name not in absent}
    folder = locate(path)
    if not Path(folder).is_dir() and current_mode():
        with loading(path):
            folder = snapshot_download(folder, revision=revision, allow_patterns=WITHOUT_WEIGHTS)
    elif not Path(folder).is_dir():
        unused = {name: None for name in config if not name.startswith("_") and name not in (*classes, "scheduler")}
        with loading(path):
            folder = pipeline.download(folder, revision=revision, variant=variant, use_safetensors=True, **unused)
    with loading(path):
        check_folder(path, folder, config)
    parts = PipelineParts(str(folder), classes, pretrained, variant, dtypes or {}, quantize)
    parts.absent = absent
    if kind != pipeline.__name__:
        _check_sister(path, kind, parts.config(parts.denoiser))
    for name, kind in classes.items():
        if _is_network(kind) and (pretrained or name != parts.denoiser) and not parts.shapes:
            parts.files(name)  # now, so that a missing file is reported before anything is loaded
    return parts, config
