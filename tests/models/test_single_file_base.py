"""A single file is a model to train: the weights are those of the pipeline that it was made from."""

import gzip
import json
import re
import shutil

import pytest
import torch
import transformers
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from helpers import families
from helpers.runs import compose
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTokenizer

from t2i.config import ConfigError
from t2i.config.instantiate import build
from t2i.experiment.plan import make_plan
from t2i.models import clip_vocabulary, single_file_base, stable_diffusion, stable_diffusion_xl
from t2i.models.lora import NoAdapter
from t2i.models.schedulers import pretrained_scheduler
from t2i.models.single_file import SINGLE
from t2i.models.single_file_base import kind_of_file

pytestmark = pytest.mark.slow

LOAD = {"sd15": stable_diffusion.load, "sd21": stable_diffusion.load, "sdxl": stable_diffusion_xl.load}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("T2I_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def single(layout, tmp_path):
    """Write the single file of a layout; returns the file and a folder with its settings and no weights."""

    def single(name):
        NoAdapter(single_file=True).save(LOAD[name](str(layout(name))).pipeline(DDIMScheduler()), tmp_path / "model")
        settings = tmp_path / "settings"
        shutil.copytree(layout(name), settings, ignore=shutil.ignore_patterns("*.safetensors"))
        return (tmp_path / "model" / SINGLE).rename(tmp_path / "anything.safetensors"), settings

    return single


@pytest.mark.parametrize("name", ["sd15", pytest.param("sd21", marks=pytest.mark.slow), "sdxl"])
def test_the_weights_are_those_of_the_pipeline(single, layout, name):
    file, settings = single(name)
    model, expected = LOAD[name](str(file), config=str(settings)), LOAD[name](str(layout(name)))
    networks = {"denoiser": (model.denoiser, expected.denoiser), "vae": (model.autoencoder, expected.autoencoder)}
    networks |= {part: (model.text_encoders[part], expected.text_encoders[part]) for part in expected.text_encoders}
    for part, (network, other) in networks.items():
        weights = network.state_dict()
        assert weights.keys() == other.state_dict().keys()
        assert all(torch.equal(weights[key], value) for key, value in other.state_dict().items()), part
    assert torch.equal(model.tokenize(["red apple"])["input_ids"], expected.tokenize(["red apple"])["input_ids"])


def test_the_scheduler_is_that_of_the_settings(single):
    file, settings = single("sd21")
    scheduler = build(compose("model=sd21", f"model.path={file}", f"model.config={settings}"), "scheduler")
    assert scheduler.config.prediction_type == "v_prediction"


def test_what_does_not_fit_is_named(single, layout, tmp_path):
    file, settings = single("sd15")
    with pytest.raises(ConfigError, match=r"needs CLIP's vocabulary, .*pip install --no-deps open_clip_torch.*FOLDER"):
        LOAD["sd15"](str(file))  # there is no network
    with pytest.raises(ConfigError, match=r"model.config=.* has no effect, as model.path=.* is no single file"):
        LOAD["sd15"](str(layout("sd15")), config=str(settings))
    with pytest.raises(ConfigError, match=r"model.config=nowhere must be a folder .* vocabulary"):
        LOAD["sd15"](str(file), config="nowhere")
    save_file({"lora_unet_x.alpha": torch.ones(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(ConfigError, match=r"lora.safetensors does not fit the settings of"):
        LOAD["sd15"](str(tmp_path / "lora.safetensors"), config=str(settings))
    (tmp_path / "old.ckpt").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"a .ckpt file can run code"):
        LOAD["sd15"](str(tmp_path / "old.ckpt"))


LETTERS = clip_vocabulary._bytes()


@pytest.fixture
def small_world(layout, monkeypatch):
    """The settings of the small layouts in the place of the published ones, and a vocabulary of their size."""

    def settings(name):
        files = {file.relative_to(layout(name)).with_suffix("") for file in layout(name).rglob("*.json")}
        kept = [file for file in files if "tokenizer" not in str(file)]
        return {str(file): json.loads((layout(name) / f"{file}.json").read_text()) for file in kept}

    kinds = {"v1": settings("sd15"), "v2": settings("sd21"), "xl_base": settings("sdxl")}
    monkeypatch.setattr(single_file_base, "SETTINGS", kinds)
    monkeypatch.setattr(single_file_base, "kind_of_file", lambda file: WORLD[file.parent.name])
    monkeypatch.setattr(clip_vocabulary, "SIZE", 2000)
    return layout


WORLD = {"sd15": "v1", "sdxl": "xl_base"}


@pytest.mark.parametrize("name", WORLD)
def test_settings_of_known_kinds_need_no_folder(small_world, tmp_path, name):
    """Of a file of XL that predicts v the scheduler does, too."""
    folder, tokenizer = tmp_path / name, small_world(name) / "tokenizer"
    scheduler = DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    NoAdapter(single_file=True).save(LOAD[name](str(small_world(name))).pipeline(scheduler), folder)
    vocabulary = tmp_path / "vocabulary"
    vocabulary.mkdir()
    parts = json.loads((tokenizer / "tokenizer.json").read_text())["model"]
    (vocabulary / "vocab.json").write_text(json.dumps(parts["vocab"]))
    (vocabulary / "merges.txt").write_text("\n".join(" ".join(merge) for merge in parts["merges"]))
    model, expected = LOAD[name](str(folder / SINGLE), config=str(vocabulary)), LOAD[name](str(small_world(name)))
    for part, network in {"unet": model.denoiser, "vae": model.autoencoder, **model.text_encoders}.items():
        state = getattr(expected.pipeline(None), part).state_dict()
        assert all(torch.equal(network.state_dict()[key], value) for key, value in state.items())
    ours, theirs = model.tokenize(["red apple"]), expected.tokenize(["red apple"])
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key][:, :5], value[:, :5]) for key, value in theirs.items())
    if name == "sdxl":
        assert model.tokenizers["tokenizer_2"].pad_token == "!"
        saved = pretrained_scheduler(str(model.parts.folder), None, None, None, None)
        assert (saved.config.prediction_type, saved.config.rescale_betas_zero_snr) == ("v_prediction", True)


@pytest.mark.parametrize(
    ("kind", "unet", "encoders"),
    [("v1", 859_520_964, [123_060_480]), ("v2", 865_910_724, [340_387_840]),
     ("xl_base", 2_567_463_684, [123_060_480, 694_659_840])],
)  # fmt: skip
def test_the_published_settings_make_networks_of_the_published_size(kind, unet, encoders):
    """Rombach et al. 2022 and Podell et al. 2023, and the files on the Hub."""
    settings = single_file_base.SETTINGS[kind]
    with init_empty_weights():
        networks = [UNet2DConditionModel.from_config(settings["unet/config"])]
        networks.append(AutoencoderKL.from_config(settings["vae/config"]))
        configs = [settings[name] for name in ("text_encoder/config", "text_encoder_2/config") if name in settings]
        networks += [getattr(transformers, each["architectures"][0])(CLIPTextConfig(**each)) for each in configs]
    sizes = [sum(weight.numel() for weight in network.parameters()) for network in networks]
    assert sizes == [unet, 83_653_863, *encoders]


def test_the_archive_of_openai_is_read_in_its_order(tmp_path):
    """Bytes, bytes at the end of a word, merges and special tokens: a is token 320 of CLIP, and ! token 0."""
    merges = [f"{first} {second}" for first in LETTERS[:200] for second in LETTERS[:250]]
    text = "\n".join(["version", *merges])
    (tmp_path / clip_vocabulary.ARCHIVE).write_bytes(gzip.compress(text.encode()))
    vocabulary, found = clip_vocabulary.find_vocabulary(tmp_path)
    assert (len(vocabulary), len(found)) == (49408, 48894)
    assert (vocabulary["!"], vocabulary["a</w>"], vocabulary["<|endoftext|>"]) == (0, 320, 49407)
    assert found[0] == "! !"
    clip_vocabulary.write_tokenizer(tmp_path / "tokenizer", vocabulary, found, "!")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert tokenizer("a", padding="max_length").input_ids[:5] == [49406, 320, 49407, 0, 0]


def test_another_kind_than_that_of_the_option_is_refused(tmp_path):
    names = {"model.diffusion_model.input_blocks.0.0.weight": (1, 4, 1, 1)}
    names["conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias"] = (1,)
    save_file({name: torch.zeros(size) for name, size in names.items()}, tmp_path / "xl.safetensors")
    cfg = compose("model=sd15", f"model.path={tmp_path / 'xl.safetensors'}")
    with pytest.raises(ConfigError, match=r"holds a StableDiffusionXLPipeline .*use model=sdxl"):
        make_plan(cfg)


def original_zimage(state):
    """The inverse of Diffusers' convert_z_image_transformer_checkpoint_to_diffusers."""
    changes = {"all_final_layer.2-1.": "final_layer.", "all_x_embedder.2-1.": "x_embedder."}
    changes |= {".to_out.0.": ".out.", ".attention.norm_k.": ".attention.k_norm.", ".norm_q.": ".q_norm."}
    original = {}
    for name, value in state.items():
        for new, old in changes.items():
            name = name.replace(new, old)
        if ".attention.to_q." in name:
            parts = [state[name.replace("to_q", f"to_{part}")] for part in "qkv"]
            original[name.replace("to_q", "qkv")] = torch.cat(parts)
        elif not re.search(r"\.attention\.to_[kv]\.", name):
            original[name] = value
    return original


@pytest.mark.parametrize(("family", "original"), [("zimage", original_zimage), ("qwen_image", dict)])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_transformer_is_read_bit_by_bit(tmp_path, family, original, prefix):
    """With the other parts of a folder; files of ComfyUI have a prefix."""
    folder = families.save(family, tmp_path / "pipeline")
    expected = build(compose(f"model={family}", f"model.path={folder}"), "model").denoiser.state_dict()
    state = {prefix + name: value.contiguous() for name, value in original(expected).items()}
    save_file(state, tmp_path / "model.safetensors")
    settings = [f"model={family}", f"model.path={tmp_path / 'model.safetensors'}", f"model.config={folder}"]
    read = build(compose(*settings), "model")
    assert read.denoiser.state_dict().keys() == expected.keys()
    assert all(torch.equal(read.denoiser.state_dict()[name], value) for name, value in expected.items())
    assert len(read.prompts(["red apple"])) == 1


@pytest.mark.parametrize("weight", [torch.zeros(3), torch.tensor(1.0)], ids=["vector", "number"])
def test_weights_of_shapes_that_no_model_has_are_named(tmp_path, weight):
    save_file({"model.diffusion_model.input_blocks.0.0.weight": weight}, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match=r"x.safetensors holds weights of shapes that no model has"):
        kind_of_file(tmp_path / "x.safetensors")
