"""LoRA files: what is written is read back with the same bits, under names that other tools know."""

import json
import re
from functools import cache

import pytest
import torch
from diffusers import DDIMScheduler
from helpers.runs import compose
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from t2i.config import ConfigError
from t2i.config.instantiate import build
from t2i.models import stable_diffusion, stable_diffusion_xl
from t2i.models.lora import LoRA
from t2i.models.lora_files import KOHYA
from t2i.models.lora_settings import AVERAGED
from t2i.models.low_rank import low_rank
from t2i.models.original_names import unet_names

pytestmark = pytest.mark.slow

LOAD = {"sd15": stable_diffusion.load, "sd21": stable_diffusion.load, "sdxl": stable_diffusion_xl.load}
LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv_shortcut", "proj_in", "ff.net.2"]
TEXT = ["q_proj", "out_proj", "fc1"]
RANKS = {"to_k": 5, "conv1": 2}

# The tables by which ComfyUI finds layers: LORA_CLIP_MAP (comfy/lora.py), UNET_MAP_ATTENTIONS, TRANSFORMER_BLOCKS,
# UNET_MAP_RESNET and UNET_MAP_BASIC (comfy/utils.py), with _ for each dot.
ATTENTION = r"(to_q|to_k|to_v|to_out_0)"
IN_TRANSFORMER = rf"(proj_in|proj_out|norm|transformer_blocks_\d+_(norm[123]|attn[12]_{ATTENTION}|ff_net_(0_proj|2)))"
IN_RESNET = r"(conv1|conv2|norm1|norm2|time_emb_proj|conv_shortcut)"
IN_BLOCK = rf"(attentions_\d+_{IN_TRANSFORMER}|resnets_\d+_{IN_RESNET}|(down|up)samplers_0_conv)"
BASIC = r"(conv_in|conv_norm_out|conv_out|(time|add)_embedding_linear_[12])"
COMFY_UNET = rf"lora_unet_((down_blocks_\d+|up_blocks_\d+|mid_block)_{IN_BLOCK}|{BASIC})"
IN_CLIP = r"text_model_encoder_layers_\d+_(mlp_fc[12]|self_attn_(k|q|v|out)_proj)"
COMFY_CLIP = {"sd15": rf"lora_te_{IN_CLIP}", "sd21": rf"lora_te_{IN_CLIP}", "sdxl": rf"lora_te[12]_{IN_CLIP}"}


def lora(**settings):
    usual = {"rank": 3, "alpha": 4.5, "dropout": 0.0, "init": "gaussian", "text_encoder": True, "formats": "kohya"}
    return LoRA(**{**usual, "target_modules": LAYERS, "text_modules": TEXT, **settings})


def filled(model):
    """The networks of an adapted model, with random adapters."""
    torch.manual_seed(1)
    for weight in model.denoiser.parameters():
        if weight.requires_grad:
            weight.data.normal_(std=0.2)
    return model


def networks(model):
    inner = getattr(model, "model", model)
    return {"unet": inner.denoiser, **inner.text_encoders}


@pytest.fixture(scope="module")
def exported(layout, tmp_path_factory):
    """An adapted model and the folder of its export."""

    @cache
    def exported(name, other_ranks=False, **settings):
        folder = tmp_path_factory.mktemp("lora") / "model"
        adapter = lora(**settings, rank_pattern=RANKS if other_ranks else None)
        model = filled(adapter.attach(LOAD[name](str(layout(name)))))
        adapter.save(model.pipeline(DDIMScheduler()), folder)
        return model, folder

    return exported


CASES = {"sd15": ("sd15", {}), "sd21": ("sd21", {}), "sdxl": ("sdxl", {}), "dora": ("sd15", {"dora": True})}


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_through_kohyas_file_is_exact(exported, layout, case, tmp_path):
    """Weights, rank, alpha and magnitudes, from run to kohya to run to peft."""
    name, settings = CASES[case]
    model, folder = exported(name, **settings)
    again = lora(**settings, path=str(folder / KOHYA)).attach(LOAD[name](str(layout(name))))
    for part, network in networks(model).items():
        before, after = low_rank(network), low_rank(networks(again)[part])
        assert before.keys() == after.keys()
        assert len(before) > 0
        for layer, expected in before.items():
            assert torch.equal(after[layer].down, expected.down)
            assert torch.equal(after[layer].up, expected.up)
            assert (after[layer].alpha, after[layer].rank) == (expected.alpha, expected.rank)
            assert (after[layer].magnitude is None) == (expected.magnitude is None) == (case != "dora")
            if expected.magnitude is not None:
                assert torch.equal(after[layer].magnitude, expected.magnitude)


@pytest.mark.parametrize("file", [AVERAGED, KOHYA])
def test_ranks_that_differ_come_back_with_the_same_effect(exported, layout, file):
    model, folder = exported("sd15", other_ranks=True)
    again = lora(path=str(folder / file)).attach(LOAD["sd15"](str(layout("sd15"))))
    for part, network in networks(model).items():
        for layer, expected in low_rank(network).items():
            read = low_rank(networks(again)[part])[layer]
            assert read.rank == expected.rank == (5 if layer.endswith("to_k") else 2 if "conv1" in layer else 3)
            theirs, ours = (
                each.alpha / each.rank * each.up.flatten(1) @ each.down.flatten(1) for each in (read, expected)
            )
            assert torch.allclose(theirs, ours, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", LOAD)
def test_comfyui_knows_every_layer_of_kohyas_file(exported, name):
    _, folder = exported(name)
    state = load_file(folder / KOHYA)
    assert {key.partition(".")[2] for key in state} == {"lora_up.weight", "lora_down.weight", "alpha"}
    layers = {key.partition(".")[0] for key in state}
    strange = [layer for layer in layers if not re.fullmatch(rf"{COMFY_UNET}|{COMFY_CLIP[name]}", layer)]
    assert strange == []
    assert all(float(value) == 4.5 for key, value in state.items() if key.endswith(".alpha"))
    assert any("_te" in layer for layer in layers)


def test_a_dora_has_the_scale_that_tools_expect(exported):
    """[out, 1] of a linear layer, [out, 1, 1, 1] of a convolution: the first dimension is that of the weight."""
    model, folder = exported("sd15", dora=True)
    state, weights = load_file(folder / KOHYA), networks(model)["unet"].state_dict()
    scales = {key: value for key, value in state.items() if key.endswith("dora_scale") and "_unet_" in key}
    assert {value.ndim for value in scales.values()} == {2, 4}
    places = {f"lora_unet_{name.replace('.', '_')}": name for name in low_rank(networks(model)["unet"])}
    for key, value in scales.items():
        weight = weights[f"{places[key.partition('.')[0]]}.base_layer.weight"]
        assert value.shape == (len(weight), *[1] * (weight.ndim - 1))


@pytest.mark.parametrize(
    ("name", "version", "architecture"),
    [
        ("sd15", "sd_v1", "stable-diffusion-v1/lora"),
        ("sd21", "sd_v2", "stable-diffusion-v2-512/lora"),
        ("sdxl", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"),
    ],
)
def test_the_metadata_that_tools_show(exported, name, version, architecture):
    _, folder = exported(name)
    with safe_open(folder / KOHYA, "pt") as file:
        metadata = file.metadata()
    shown = {"ss_network_module": "networks.lora", "ss_network_dim": "3", "ss_network_alpha": "4.5"}
    assert metadata.items() >= {**shown, "ss_base_model_version": version}.items()
    assert metadata["modelspec.architecture"] == architecture


def test_the_file_of_diffusers_needs_no_alpha(exported):
    """alpha / rank is in the weights, and the settings say so; text encoders have their original names."""
    model, folder = exported("sdxl")
    state = load_file(folder / AVERAGED)
    for part, network in networks(model).items():
        for layer, each in low_rank(network).items():
            name = layer if part == "unet" else f"text_model.{layer.removeprefix('text_model.')}"
            assert torch.equal(state.pop(f"{part}.{name}.lora_A.weight"), each.down)
            assert torch.equal(state.pop(f"{part}.{name}.lora_B.weight"), each.up * 1.5)
    assert not state
    with safe_open(folder / AVERAGED, "pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    assert settings["unet.r"] == settings["unet.lora_alpha"] == settings["text_encoder_2.lora_alpha"] == 3


def renamed(state, change):
    return {change(name): value.clone() for name, value in state.items()}


FORMS = {
    "sgm names of kohya for XL": lambda state, unet: renamed(
        state, lambda name: sgm(name, unet) if name.startswith("lora_unet_") else name
    ),
    "attention processors of Diffusers 0.1x": lambda state, unet: {
        **renamed(processors(state), lambda name: f"unet.{name}")
    },
    "peft": lambda state, unet: renamed(plain(state), lambda name: f"base_model.model.{name}"),
    "Diffusers": lambda state, unet: renamed(plain(state), lambda name: f"unet.{name}"),
    "half precision": lambda state, unet: {name: value.half() for name, value in state.items()},
}


def sgm(name, unet):
    layer, _, rest = name.removeprefix("lora_unet_").partition(".")
    originals = unet_names(part for part, module in unet.named_modules() if getattr(module, "weight", None) is not None)
    places = {part.replace(".", "_"): original.replace(".", "_") for part, original in originals.items()}
    return f"lora_unet_{places[layer]}.{rest}"


def plain(state):
    """lora_unet_a_b.lora_down.weight as a.b.lora_A.weight, of the adapted layers to_q alone."""
    names = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
    change = {
        "lora_unet_": "",
        "down_blocks_": "down_blocks.",
        "up_blocks_": "up_blocks.",
        "mid_block_attentions_": "mid_block.attentions.",
        "_attentions_": ".attentions.",
        "_transformer_blocks_": ".transformer_blocks.",
        "_attn": ".attn",
        "_to_q": ".to_q",
        **names,
    }
    found = {}
    for name, value in state.items():
        if "_unet_" in name and "to_q." in name and not name.endswith("alpha"):
            for old, new in change.items():
                name = name.replace(old, new)
            found[name] = value
    return found


def processors(state):
    change = {".to_q.lora_A.": ".processor.to_q_lora.down.", ".to_q.lora_B.": ".processor.to_q_lora.up."}
    return {
        next(name.replace(old, new) for old, new in change.items() if old in name): value
        for name, value in plain(state).items()
    }


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_file_is_read(exported, layout, form, tmp_path):
    model, folder = exported("sdxl", text_encoder=False, alpha=3.0, target_modules=("to_q", "conv1"))
    unet = LOAD["sdxl"](str(layout("sdxl"))).denoiser
    save_file(FORMS[form](load_file(folder / KOHYA), unet), tmp_path / "lora.safetensors")
    again = lora(path=str(tmp_path / "lora.safetensors"), text_encoder=False).attach(LOAD["sdxl"](str(layout("sdxl"))))
    expected, read = low_rank(networks(model)["unet"]), low_rank(again.denoiser)
    assert read
    rounding = 1e-3 if form == "half precision" else 0
    for name, each in read.items():
        assert torch.allclose(each.down, expected[name].down, atol=rounding, rtol=0)
        assert torch.allclose(each.up, expected[name].up, atol=rounding, rtol=0)
        assert each.alpha == 3


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"lora_unet_nowhere.lora_up.weight": 1}, "for another model: this one has no layer lora_unet_nowhere"),
        ({"unet.conv_in.lora_A.weight": 1}, "the adapter of conv_in is incomplete"),
        (
            {"model.diffusion_model.input_blocks.0.0.weight": 1},
            "is not a LoRA that can be gone on with: it holds model",
        ),
        ({}, "holds no adapters"),
    ],
)
def test_files_that_fit_nothing_are_named(layout, tmp_path, state, message):
    file = tmp_path / "lora.safetensors"
    save_file({name: torch.zeros(size) for name, size in state.items()}, file)
    with pytest.raises(ConfigError, match=message):
        lora(path=str(file)).attach(LOAD["sd15"](str(layout("sd15"))))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("adapter.path=nowhere.safetensors", "adapter.path=nowhere.safetensors: there is no such file"),
        ("adapter.path=conf", "adapter.path=conf is a folder; give the .safetensors file in it"),
        ("adapter.path=README.md", "adapter.path=README.md must be a .safetensors file"),
        ("export.lora=a1111", "export.lora=a1111 is not known; use kohya, or null"),
        ("adapter.rank_pattern={to_k:0}", "adapter.rank_pattern.to_k=0 must be positive"),
        ("adapter=dora adapter.init=pissa", "adapter.init=pissa changes the weights that adapter.dora measures"),
    ],
)
def test_settings_are_checked_before_anything_is_loaded(setting, message):
    with pytest.raises(ConfigError, match=message):
        build(compose(*(() if "adapter=" in setting else ("adapter=lora",)), *setting.split()), "adapter")


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_what_was_taken_off_the_base_is_not_in_the_export(layout, tmp_path, init):
    """Training starts at the base, and base plus export is what was trained."""
    base = LOAD["sd15"](str(layout("sd15"))).denoiser.state_dict()
    adapter = lora(init=init, text_encoder=False, target_modules=["to_q"])
    model = adapter.attach(LOAD["sd15"](str(layout("sd15"))))
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    module = model.denoiser.get_submodule(layer)
    effective = module.base_layer.weight + module.get_delta_weight("default")
    assert torch.allclose(effective, base[f"{layer}.weight"], atol=1e-5)
    assert not torch.allclose(module.base_layer.weight, base[f"{layer}.weight"], atol=1e-2)
    filled(model)
    trained = module.base_layer.weight + module.get_delta_weight("default")
    each = low_rank(model.denoiser)[layer]
    assert each.rank == 6
    with pytest.raises(ConfigError, match=rf"adapter.init={init} works on linear layers only"):
        lora(init=init, text_encoder=False).attach(LOAD["sd15"](str(layout("sd15"))))
    assert torch.allclose(base[f"{layer}.weight"] + each.alpha / each.rank * each.up @ each.down, trained, atol=1e-5)


def test_rslora_scales_by_the_root_of_the_rank(layout):
    model = lora(rslora=True, rank=4, alpha=6.0, text_encoder=False).attach(LOAD["sd15"](str(layout("sd15"))))
    assert {each.alpha / each.rank for each in low_rank(model.denoiser).values()} == {6 / 2}
