"""The parts of a pipeline in the Diffusers layout, read when they are first used."""

import json
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import nn

from t2i.config import ConfigError
from t2i.models.library_logs import hide_loading_bars
from t2i.models.loading_errors import naming_model
from t2i.models.model_folder import check_tokenizer
from t2i.models.shapes import FakeTensorMode, current_mode
from t2i.models.tokens import with_length

DENOISERS = ("unet", "transformer")  # the names that the part that is trained has
CONVERT = (
    'its weights are .bin files, which can run code. If you trust them: python -c "from diffusers import '
    "DiffusionPipeline as P; P.from_pretrained('{folder}', use_safetensors=False).save_pretrained('NEW')\", then "
    "model.path=NEW"
)


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
        self.places: dict[str, Path] = {}  # folders of networks that are not those of the pipeline
        self.device = torch.device("cpu")
        self.read: dict[str, Any] = {}
        self.resting = set[str]()  # networks that are on the CPU until they are used
        self.shapes: FakeTensorMode | None = current_mode()  # whether networks have shapes only

    def __getitem__(self, name: str) -> Any:
        if name not in self.read:
            with naming_model(self.folder, "loaded"):
                self.read[name] = self._load(name)
        if name in self.resting:
            self.resting.remove(name)
            self.read[name].to(self.device)
        return self.read[name]

    def __setitem__(self, name: str, part: Any) -> None:
        self.read[name] = part

    def names(self, prefix: str) -> list[str]:
        return [name for name in self.classes if name.startswith(prefix)]

    def _load(self, name: str) -> Any:
        kind = self.classes[name]
        hide_loading_bars()
        if not is_network(kind):
            part = kind.from_pretrained(self.folder, subfolder=name)
            encoder = name.replace("tokenizer", "text_encoder")
            if name.startswith("tokenizer") and encoder in self.classes:
                part = with_length(part, self.config(encoder))
            check_tokenizer(part)
            return part
        if self.shapes:
            return self._without_weights(name)
        if name == self.denoiser and not self.pretrained:
            return kind.from_config(kind.load_config(self.where(name)))
        dtype = self.dtypes.get(name, torch.float32)
        if name == self.denoiser and self.quantize:
            from t2i.models.quantized import read_quantized

            config = kind.load_config(self.where(name))
            return read_quantized(kind, config, self.files(name)[1:], dtype, self.quantize)
        part = self._read(name, dtype)
        if name == self.denoiser:
            return part
        flat = name == "vae" and all(weight.ndim <= 4 for weight in part.parameters())  # not an autoencoder of videos
        layout = torch.channels_last if flat else torch.preserve_format  # convolutions are faster this way
        return part.eval().requires_grad_(False).to(self.device, memory_format=layout)

    def where(self, name: str) -> Path:
        """The folder of a part."""
        return self.places.get(name, self.folder / name)

    def _read(self, name: str, dtype: torch.dtype) -> Any:
        weights = {"variant": self._variant_of(name), "use_safetensors": True, "dtype": dtype}
        return self.classes[name].from_pretrained(self.where(name), **weights)

    def _variant_of(self, name: str) -> str | None:
        return None if name in self.places else self.variant

    def plain(self, name: str) -> nn.Module:
        """A network as it is in its files, in their type; it is not kept."""
        with safe_open(self.files(name)[1], framework="pt") as opened:
            dtype = opened.get_tensor(next(iter(opened.keys()))).dtype
        with naming_model(self.folder, "loaded"):
            return self._read(name, dtype)

    def empty(self, name: str) -> nn.Module:
        """A network without weights, for the names of its layers; it is not kept."""
        with naming_model(self.folder, "loaded"), init_empty_weights():
            return self._from_config(name)

    def _from_config(self, name: str) -> nn.Module:
        kind = self.classes[name]
        if hasattr(kind, "load_config"):  # of Diffusers, not of Transformers
            return kind.from_config(kind.load_config(self.where(name)))
        return kind(kind.config_class.from_pretrained(self.where(name)))

    def _without_weights(self, name: str) -> nn.Module:
        with self.shapes or nullcontext():
            network = self._from_config(name)
            for tensor in network.state_dict(keep_vars=True).values():  # what would be read from the files
                if tensor.is_floating_point():  # `to` of a module would exchange the tensors, which can't be done here
                    tensor.data = tensor.data.to(self.dtypes.get(name, torch.float32))
            return network if name == self.denoiser else network.eval().requires_grad_(False)

    def config(self, name: str) -> dict[str, Any]:
        """The settings of a part, without its weights."""
        with naming_model(self.folder, "loaded"):
            return json.loads((self.where(name) / "config.json").read_text())

    def files(self, name: str) -> list[Path]:
        """The files that determine what a network computes: its settings and its weights."""
        available = sorted(self.where(name).glob("*.safetensors"))
        chosen = [file for file in available if _variant(file) == self._variant_of(name)]
        if not chosen:
            what = f"safetensors of variant {self.variant}" if self.variant else "safetensors"
            other = any(self.where(name).glob("*.bin"))
            raise ConfigError(
                f"model.path={self.folder} can't be loaded: no {what} in {name}/; "
                + (CONVERT.format(folder=self.folder) if other else "choose another model.variant")
            )
        return [self.where(name) / "config.json", *chosen]

    def to(self, device: torch.device) -> None:
        """Move the frozen networks to a device, including those that are read later."""
        self.device = device
        for name, part in self.read.items():
            if isinstance(part, nn.Module) and name != self.denoiser:
                part.to(device)

    def rest(self) -> None:
        """Keep the networks that are not trained on the CPU; each moves back when it is used again."""
        if self.device.type != "cpu":
            for name in self._frozen():
                self.read[name].to("cpu")
                self.resting.add(name)

    def release(self) -> None:
        """Forget the networks that are not trained; they are read again when they are used again."""
        for name in self._frozen():
            del self.read[name]
            self.resting.discard(name)

    def _frozen(self) -> list[str]:
        return [
            name
            for name, part in self.read.items()
            if isinstance(part, nn.Module)
            and name != self.denoiser  # needed in each step, even where only text encoders are trained
            and not any(weight.requires_grad for weight in part.parameters())
        ]


def is_network(kind: type) -> bool:
    return issubclass(kind, nn.Module)


def _variant(file: Path) -> str | None:
    """None for MODEL.safetensors; fp16 for MODEL.fp16.safetensors and MODEL.fp16-00001-of-00002.safetensors."""
    between = file.name.split(".")[1:-1]
    return between[0].partition("-")[0] if between else None
