"""Networks whose features images are compared by: CLIP, SigLIP and DINO of Transformers, on the Hub or in a folder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from t2i.config import ConfigError
from t2i.config.out_of_memory import lacking
from t2i.evaluation.image_metrics.network_files import BUNDLED_TOKENIZERS, WEIGHTS, check_settings, find
from t2i.models.library_logs import hide_loading_bars, quiet
from t2i.models.model import Content
from t2i.runs.text import one_line

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model")


def _projected(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    return model.get_image_features(**inputs).pooler_output


def _class_token(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    return model(**inputs).last_hidden_state[:, 0]


class Kind(NamedTuple):
    """A class of Transformers, and how it turns pixels into features, [B, D]."""

    name: str
    image_features: Callable[[Any, dict[str, Tensor]], Tensor]
    arguments: dict[str, Any]
    reads_text: bool = False


KINDS = {  # model_type in config.json
    "clip": Kind("CLIPModel", _projected, {}, reads_text=True),
    "siglip": Kind("SiglipModel", _projected, {}, reads_text=True),
    "siglip2": Kind("Siglip2Model", _projected, {}, reads_text=True),
    "dinov2": Kind("Dinov2Model", _class_token, {}),
    "dinov2_with_registers": Kind("Dinov2WithRegistersModel", _class_token, {}),
    "dinov3_vit": Kind("DINOv3ViTModel", _class_token, {}),
    "vit": Kind("ViTModel", _class_token, {"add_pooling_layer": False}),  # DINO (Caron et al. 2021)
}


@dataclass(frozen=True, kw_only=True)
class FeatureNetwork:
    """A network, which is found by its files and loaded when it is needed.

    The features of CLIP and SigLIP are the projected ones, and those of DINO the class token after the last norm. On a
    GPU the network computes in half precision.
    """

    setting: str  # that names it, such as metric.cmmd.model
    model: str  # tiny, a folder, or an id on the Hub
    revision: str | None = None  # branch, tag or commit on the Hub
    batch_size: int = 32  # images
    processor: str | None = None  # folder or id of the image processor and the tokenizer, if they are not the model's
    whole: bool = False  # shrink all of an image into the network's square, where its processor would crop a border
    reads_text: bool = False  # whether prompts have features, too

    def check(self) -> None:
        """Raise ConfigError if the files are missing, or can't be those of such a network."""
        self._kind(self._files()[0])

    @property
    def image_content(self) -> tuple[Content, ...]:
        """What the features of images depend on besides the images."""
        folder, processor = self._files()
        weights = sorted(file for pattern in WEIGHTS for file in folder.glob(pattern))
        return (folder / "config.json", processor / "preprocessor_config.json", *weights, f"whole={self.whole}")

    @property
    def text_content(self) -> tuple[Content, ...]:
        """What those of prompts depend on besides."""
        files = (self._tokenizer() / name for name in TOKENIZER_FILES)
        return tuple(file for file in files if file.is_file())

    def load(self, device: torch.device) -> "Loaded":
        """Raises ConfigError, with the setting, for files that can't be read."""
        hide_loading_bars()
        folder, processor_folder = self._files()
        kind = self._kind(folder)
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        local = {"local_files_only": True, "trust_remote_code": False}
        try:
            with quiet("transformers"):
                processor = transformers.AutoImageProcessor.from_pretrained(processor_folder, backend="pil", **local)
                tokenizer = (
                    transformers.AutoTokenizer.from_pretrained(self._tokenizer(), **local) if self.reads_text else None
                )
                model, info = getattr(transformers, kind.name).from_pretrained(
                    folder,
                    dtype=dtype,
                    use_safetensors=True,
                    local_files_only=True,
                    output_loading_info=True,
                    **kind.arguments,
                )
        except Exception as error:  # the libraries raise anything for a damaged or strange file
            if lacking(error):
                raise
            raise ConfigError(
                f"{self.setting}={self.model} can't be loaded: {one_line(error)}; fetch it again"
            ) from error
        if missing := sorted(info["missing_keys"]):
            raise ConfigError(
                f"{self.setting}={self.model} lacks {len(missing)} of the weights of a {kind.name}, such as "
                f"{missing[0]}; use a complete copy"
            )
        model = model.eval().requires_grad_(False).to(device)
        return Loaded(model, kind, processor, _whole(processor) if self.whole else {}, tokenizer, self.batch_size)

    def _files(self) -> tuple[Path, Path]:
        """The folder of the weights, and that of the image processor."""
        if self.batch_size < 1:
            raise ConfigError(f"{self.setting.rpartition('.')[0]}.batch_size={self.batch_size} must be at least 1")
        folder = find(self.setting, self.model, self.revision)
        if self.processor is None:
            return folder, folder
        return folder, find(self._processor_setting, self.processor, weights=False)

    def _tokenizer(self) -> Path:
        return BUNDLED_TOKENIZERS.get(self.model, self._files()[1])

    @property
    def _processor_setting(self) -> str:
        return f"{self.setting.rpartition('.')[0]}.processor"

    def _kind(self, folder: Path) -> Kind:
        """Of the network in a folder; ConfigError if there is none, or if what belongs to it is missing."""
        settings = check_settings(self.setting, self.model, folder)
        kind = KINDS.get(str(settings.get("model_type")))
        named = f"{self.setting}={self.model}"
        if kind is None or (self.reads_text and not kind.reads_text):
            known = [name for name, other in KINDS.items() if other.reads_text or not self.reads_text]
            raise ConfigError(f"{named} is of type {settings.get('model_type')}; choose one of {', '.join(known)}")
        processor = self._files()[1]
        owner = named if self.processor is None else f"{self._processor_setting}={self.processor}"
        if not (processor / "preprocessor_config.json").is_file():
            raise ConfigError(f"{owner} has no preprocessor_config.json; add that of its image processor")
        if self.reads_text and not self.text_content:
            raise ConfigError(f"{owner} has no tokenizer ({', '.join(TOKENIZER_FILES)}); add its files")
        for other in {processor, self._tokenizer()} - {folder}:
            check_settings(self.setting, self.model, other)
        return kind


def _whole(processor: Any) -> dict[str, Any]:
    """Arguments with which an image processor resizes to the square that it would crop."""
    if not getattr(processor, "do_center_crop", False):
        return {}
    square = {"height": processor.crop_size["height"], "width": processor.crop_size["width"]}
    return {"size": square, "do_center_crop": False}


class Loaded:
    """A network in memory."""

    def __init__(
        self, model: Any, kind: Kind, processor: Any, options: dict[str, Any], tokenizer: Any, batch_size: int
    ):
        self.model, self.kind, self.batch_size = model, kind, batch_size
        self.processor, self.options, self.tokenizer = processor, options, tokenizer

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Features of a batch, [B, D], float32 on the CPU."""
        inputs = self.processor(images=[image.convert("RGB") for image in images], return_tensors="pt", **self.options)
        model = self.model
        moved = {name: x.to(model.device, model.dtype if x.is_floating_point() else None) for name, x in inputs.items()}
        return self.kind.image_features(model, moved).float().cpu()

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors of any number of prompts, [P, D]; what is longer than the text encoder reads is cut."""
        rows = []
        for start in range(0, len(prompts), self.batch_size):
            batch = list(prompts[start : start + self.batch_size])
            options = {"padding": "max_length", "truncation": True, "max_length": self.context, "return_tensors": "pt"}
            tokens = self.tokenizer(batch, **options).input_ids.to(self.model.device)
            rows.append(F.normalize(self.model.get_text_features(input_ids=tokens).pooler_output.float(), dim=-1).cpu())
        return torch.cat(rows)

    def cut(self, prompts: Sequence[str]) -> int:
        """How many prompts are longer than the text encoder reads."""
        with quiet("transformers.tokenization_utils_base"):
            lengths = [len(tokens) for tokens in self.tokenizer(list(prompts)).input_ids]
        return sum(length > self.context for length in lengths)

    @property
    def context(self) -> int:
        """Tokens that the text encoder reads."""
        return self.model.config.text_config.max_position_embeddings
