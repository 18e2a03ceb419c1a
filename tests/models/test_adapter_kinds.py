"""LoKr, LoHa, OFT and BOFT: what they compute, and that their files come back with the same bits."""

import json
import re
from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from helpers.runs import compose
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from t2i.config import ConfigError
from t2i.config.instantiate import build
from t2i.experiment.plan import make_plan
from t2i.models.adapter_kinds import BlockDiagonal
from t2i.models.lora_files import KOHYA, PEFT
from t2i.models.lora_settings import AVERAGED
from t2i.models.low_rank import factors
from t2i.models.merging import merged_weights
from t2i.models.stable_diffusion import load
from t2i.sampling.pipelines import load_pipeline

pytestmark = pytest.mark.slow

KINDS = {
    "lokr": ["adapter=lokr", "adapter.rank=2", "adapter.alpha=3", "adapter.factor=4"],
    "lokr of complete factors": ["adapter=lokr", "adapter.rank=64", "adapter.alpha=5", "adapter.factor=4"],
    "lokr of two products": ["adapter=lokr", "adapter.rank=1", "adapter.factor=-1", "adapter.decompose_both=true"],
    "lokr of kernels": ["adapter=lokr", "adapter.rank=1", "adapter.factor=4", "adapter.convolutions=true"],
    "loha": ["adapter=loha", "adapter.rank=2", "adapter.alpha=3", "adapter.rank_pattern={to_k: 3}"],
    "loha of kernels": ["adapter=loha", "adapter.rank=2", "adapter.convolutions=true"],
    "oft": ["adapter=oft", "adapter.block_size=4", "adapter.target_modules=[to_q,to_k,proj_in]"],
    "boft": ["adapter=boft", "adapter.block_size=4", "adapter.target_modules=[to_q,to_k]"],
}
LAYERS = "adapter.target_modules=[to_q,to_k,conv1,proj_in]"
TEXT = ["adapter.text_encoder=true", "adapter.text_modules=[q_proj]"]
LYCORIS = [case for case in KINDS if case.startswith("lo")]
# The weights that ComfyUI's loaders look for: comfy/weight_adapter/lokr.py and loha.py, with alpha in comfy/lora.py.
COMFY = {
    "lokr": {"lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "alpha"},
    "loha": {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "alpha"},
}


VARIANTS = [case for case in KINDS if " " in case]
CASES = [pytest.param(case, marks=[pytest.mark.slow] if case in VARIANTS else []) for case in KINDS]


@cache
def chosen(case):
    return build(compose(LAYERS, *KINDS[case], *TEXT), "adapter")


def adapter(case, path=None):
    return replace(chosen(case), path=None if path is None else str(path))


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def trained(case, layout, tmp_path_factory):
    """A model with random adapters, the folder of its export, and the base's UNet."""
    folder = tmp_path_factory.mktemp("kinds") / "model"
    model = adapter(case).attach(load(str(layout("sd15"))))
    torch.manual_seed(4)
    for weight in model.denoiser.parameters():
        if weight.requires_grad:
            weight.data += 0.2 * torch.randn_like(weight)
    adapter(case).save(model.pipeline(DDIMScheduler()), folder)
    return model, folder, load(str(layout("sd15"))).denoiser


def networks(model):
    return {"unet": model.model.denoiser, **model.model.text_encoders}


def test_training_begins_at_the_base(case, layout):
    base, model = load(str(layout("sd15"))).denoiser, adapter(case).attach(load(str(layout("sd15"))))
    merged = merged_weights(model.model.denoiser)
    assert all(torch.allclose(merged[name], value, atol=1e-6) for name, value in base.state_dict().items())


def test_a_layer_computes_with_the_merged_weights(trained):
    """Forward and merging agree in every adapted layer, and every one of them is changed."""
    model, _, base = trained
    unet, merged = model.model.denoiser, merged_weights(model.model.denoiser)
    for name in factors(unet):
        layer, plain = unet.get_submodule(name), base.get_submodule(name)
        shape = (2, 5, plain.in_features) if isinstance(plain, nn.Linear) else (2, plain.in_channels, 6, 6)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        before = plain(x)
        kept = plain.weight.data
        plain.weight.data = merged[f"{name}.weight"]
        assert not torch.allclose(before, plain(x), atol=1e-3)
        assert torch.allclose(layer(x), plain(x), atol=1e-4), name
        plain.weight.data = kept


def test_there_and_back_is_exact(case, trained, layout):
    """Through the file of t2i and Diffusers where no scale is multiplied in, and through that of LyCORIS always."""
    model, folder, _ = trained
    files = [*([AVERAGED] if "adapter.alpha=3" not in KINDS[case] else []), *([KOHYA] if case in LYCORIS else [])]
    assert (folder / KOHYA).is_file() == (case in LYCORIS)
    for file in files:
        again = adapter(case, folder / file).attach(load(str(layout("sd15"))))
        for part, network in networks(model).items():
            before, after = factors(network), factors(networks(again)[part])
            assert before.keys() == after.keys()
            assert before
            for name, expected in before.items():
                assert after[name].tensors.keys() == expected.tensors.keys()
                assert all(torch.equal(after[name].tensors[key], value) for key, value in expected.tensors.items())
                assert (after[name].scale, after[name].rank) == (expected.scale, expected.rank)


def test_the_scale_multiplied_in_has_the_same_effect(trained, layout, case):
    model, folder, _ = trained
    again = adapter(case, folder / AVERAGED).attach(load(str(layout("sd15"))))
    ours, theirs = (merged_weights(networks(each)["unet"]) for each in (model, again))
    assert all(torch.allclose(theirs[name], value, atol=1e-6) for name, value in ours.items())


def test_merged_into_a_base_it_is_the_trained_model(trained, layout):
    model, folder, _ = trained
    base = load(str(layout("sd15")), adapters=[str(folder)])
    for part, network in networks(model).items():
        expected = merged_weights(network)
        state = (base.denoiser if part == "unet" else base.text_encoders[part]).state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.allclose(state[name], value, atol=1e-5) for name, value in expected.items())


def test_peft_reads_its_folder(trained, layout):
    model, folder, _ = trained
    unet = UNet2DConditionModel.from_pretrained(layout("sd15"), subfolder="unet")
    loaded = PeftModel.from_pretrained(unet, folder, subfolder=f"{PEFT}/unet").base_model.model
    theirs, ours = merged_weights(loaded), merged_weights(model.model.denoiser)
    assert theirs.keys() == ours.keys()
    assert all(torch.allclose(theirs[name], value, atol=1e-5) for name, value in ours.items())


@pytest.mark.parametrize("case", ["lokr"], indirect=True)
def test_diffusers_reads_lokr(trained, case, layout):
    """`load_lora_adapter`, which pipelines of transformers call; those of UNets take LoRA only."""
    model, folder, _ = trained
    unet = UNet2DConditionModel.from_pretrained(layout("sd15"), subfolder="unet")
    with safe_open(folder / AVERAGED, "pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    unet.load_lora_adapter(load_file(folder / AVERAGED), prefix="unet", metadata=settings)
    unet.fuse_lora()
    unet.unload_lora()
    ours = merged_weights(model.model.denoiser)
    assert all(torch.allclose(unet.state_dict()[name], value, atol=1e-5) for name, value in ours.items())


@pytest.mark.parametrize("case", CASES[: len(LYCORIS)], indirect=True)
def test_comfyui_knows_every_weight(trained, case):
    """And its formula gives the change: kron(w1, w2) · alpha / rank, which two complete factors have not."""
    model, folder, base = trained
    state = load_file(folder / KOHYA)
    names = {name.partition(".")[2] for name in state}
    assert names <= COMFY[case.split()[0]]
    assert all(re.match(r"lora_(unet|te)_\w+\.", name) for name in state)
    merged, before = merged_weights(model.model.denoiser), base.state_dict()
    places = {f"lora_unet_{name.replace('.', '_')}": name for name in factors(model.model.denoiser)}
    for flat, name in places.items():
        weights = {key.partition(".")[2]: value for key, value in state.items() if key.startswith(f"{flat}.")}
        change = merged[f"{name}.weight"] - before[f"{name}.weight"]
        assert torch.allclose(comfy(weights).reshape(change.shape), change, atol=1e-5), name


def comfy(weights):
    """The change as `calculate_weight` in comfy/weight_adapter has it."""
    alpha, product = weights["alpha"].item(), "i j k l, j r, i p -> p r k l"
    if "hada_w1_a" in weights:
        w1a, w1b, w2a, w2b = (weights[f"hada_w{place}"] for place in ("1_a", "1_b", "2_a", "2_b"))
        if "hada_t1" in weights:
            m1 = torch.einsum(product, weights["hada_t1"], w1b, w1a)
            return m1 * torch.einsum(product, weights["hada_t2"], w2b, w2a) * (alpha / len(w1b))
        return (w1a @ w1b) * (w2a @ w2b) * (alpha / len(w1b))
    rank, w1, w2 = None, weights.get("lokr_w1"), weights.get("lokr_w2")
    if w1 is None:
        rank, w1 = len(weights["lokr_w1_b"]), weights["lokr_w1_a"] @ weights["lokr_w1_b"]
    if w2 is None:
        rank, w2_a, w2_b = len(weights["lokr_w2_b"]), weights["lokr_w2_a"], weights["lokr_w2_b"]
        w2 = torch.einsum(product, weights["lokr_t2"], w2_b, w2_a) if "lokr_t2" in weights else w2_a @ w2_b
    w1 = w1[..., None, None] if w2.ndim == 4 else w1
    return torch.kron(w1, w2.contiguous()) * (alpha / rank if rank else 1.0)


def test_the_metadata_that_tools_show(trained, case):
    _, folder, _ = trained
    if case not in LYCORIS:
        pytest.skip("has no such file")
    with safe_open(folder / KOHYA, "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_network_module"] == "lycoris.kohya"
    assert json.loads(metadata["ss_network_args"])["algo"] == case.split()[0]


@pytest.mark.parametrize("kind", ["lokr", "loha", "oft", "boft", "rslora", "pissa", "olora", "dora"])
def test_a_run_resumes_bit_by_bit_and_samples(train, layout, tmp_path, kind):
    settings = ["model=sd15", f"model.path={layout('sd15')}", f"adapter={kind}", "steps=4", "save_every=2"]
    settings += ["validate_every=0", "sample_every=0", "optimizer.lr=0.01", "adapter.target_modules=[to_q,to_v]"]
    settings += [text for text in KINDS.get(kind, ["adapter.rank=2"]) if not text.startswith(("adapter=", "adapter.t"))]
    settings += ["adapter.dropout=0.25"] if kind in ("lokr", "loha", "oft", "boft", "rslora") else []
    settings = [text for text in settings if "rank_pattern" not in text]
    whole = train(tmp_path / "whole", *settings)
    train(tmp_path / "run", *settings, "stop_at=2")
    run = train(tmp_path / "run", *settings)
    for name in ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.non_ema.safetensors"):
        ours, theirs = (load_file(each.folder / "model" / name) for each in (run, whole))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    exported, of_checkpoint = (load_pipeline(f) for f in (run.folder, run.folder / "checkpoints" / "step-000004"))
    merged, again = (merged_weights(each.unet) for each in (exported, of_checkpoint))
    base, next_base = (load(str(path)).denoiser.state_dict() for path in (layout("sd15"), run.folder))
    for name, value in merged.items():
        assert torch.allclose(again[name], value, atol=1e-4)
        assert torch.allclose(next_base[name], value, atol=1e-5)
    assert any(not torch.allclose(base[name], value, atol=1e-4) for name, value in merged.items())


def test_block_diagonal_matrices_and_their_gradient():
    blocks = torch.randn(2, 3, 4, 4)
    expected = torch.stack([torch.block_diag(*each) for each in blocks])
    assert torch.equal(BlockDiagonal.forward(blocks)[0], expected)
    assert torch.equal(BlockDiagonal.backward(expected, blocks)[0], blocks)


def test_boft_joins_blocks_by_butterflies(layout):
    """With two factors an input is turned into others than those of its own block."""
    model = build(compose(*KINDS["boft"]), "adapter").attach(load(str(layout("sd15"))))
    name, each = next(iter(factors(model.denoiser).items()))
    assert each.tensors["boft_R"].shape[0] == 2
    layer = model.denoiser.get_submodule(name)
    layer.boft_R["default"].data.normal_(generator=torch.Generator().manual_seed(0))
    rotation, _ = layer.get_delta_weight("default")
    assert torch.allclose(rotation @ rotation.T, torch.eye(len(rotation)), atol=1e-5)
    assert (rotation[:4].abs() > 1e-6).any(0).sum() == 8  # a block of 4 reaches 8 inputs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["adapter=lokr", "adapter.factor=0"], "adapter.factor=0 must be a number of blocks"),
        (["adapter=loha", "adapter.rank=0"], "adapter.rank=0 must be positive"),
        (["adapter=oft", "adapter.block_size=0"], "adapter.block_size=0 must be positive"),
        (["adapter=boft", "adapter.factors=0"], "adapter.factors=0 must be positive"),
        (["adapter=oft", "adapter.dropout=1"], "adapter.dropout=1 must be a fraction"),
        (
            ["adapter=lokr", "model.quantize=nf4"],
            "this adapter computes with the weights themselves",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_plan(compose(*settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["adapter=oft", "adapter.block_size=5"], "adapter=oft: blocks of 5 do not divide the 32 inputs of"),
        (["adapter=oft", "adapter.target_modules=[conv1]"], "adapter=oft works on linear layers and convolutions of 1"),
        (["adapter=boft", "adapter.block_size=5"], "adapter=boft: blocks of 10 do not divide the"),
        (["adapter=lokr", "adapter.rank_pattern={to_x: 4}"], r"adapter.rank_pattern: no adapted layer is called to_x"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(layout, settings, message):
    with pytest.raises(ConfigError, match=message):
        build(compose(*settings), "adapter").attach(load(str(layout("sd15"))))


def test_a_file_of_another_kind_is_named(layout, tmp_path):
    state = {"lora_unet_conv_in.hada_w1_a": torch.zeros(16, 1), "lora_unet_conv_in.hada_w1_b": torch.zeros(1, 36)}
    state |= {name.replace("w1", "w2"): value.clone() for name, value in state.items()}
    save_file(state, tmp_path / "loha.safetensors")
    chosen = adapter("lokr", tmp_path / "loha.safetensors")
    with pytest.raises(ConfigError, match=r"holds loha, and not lokr; use adapter=loha"):
        chosen.attach(load(str(layout("sd15"))))
    save_file({**state, "lora_unet_conv_in.dora_scale": torch.zeros(16, 1)}, tmp_path / "loha.safetensors")
    with pytest.raises(ConfigError, match=r"the adapter of conv_in is incomplete, or of a kind that t2i does not know"):
        chosen.attach(load(str(layout("sd15"))))
