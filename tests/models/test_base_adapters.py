"""Adapters that are merged into the base, and other autoencoders: the base of a run wherever it is opened."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from helpers import layouts
from helpers.runs import compose
from safetensors.torch import load_file, save_file

from t2i.config import ConfigError
from t2i.config.instantiate import build
from t2i.experiment.plan import make_plan
from t2i.models.base_adapters import adapter_facts, parse_adapters
from t2i.models.bases import pipeline_of_run
from t2i.models.lora import LoRA
from t2i.models.lora_files import KOHYA
from t2i.models.lora_settings import AVERAGED
from t2i.models.merging import merged_weights
from t2i.models.original_names import vae_name
from t2i.models.stable_diffusion import load
from t2i.publishing.card_code import use_base
from t2i.sampling.pipelines import load_pipeline


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T2I_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def lora(layout, tmp_path_factory):
    """A LoRA with text encoder; the folder of its files, and the weights of the base with it at full strength."""
    folder = tmp_path_factory.mktemp("lora")
    settings = {"rank": 2, "alpha": 3.0, "dropout": 0.0, "init": "gaussian", "text_encoder": True, "formats": "kohya"}
    adapter = LoRA(**settings, target_modules=["to_q", "conv1"], text_modules=["q_proj"])
    model = adapter.attach(load(str(layout("sd15"))))
    torch.manual_seed(3)
    for weight in model.denoiser.parameters():
        if weight.requires_grad:
            weight.data.normal_(std=0.1)
    adapter.save(model.pipeline(DDIMScheduler()), folder)
    inner = model.model
    return folder, merged_weights(inner.denoiser), merged_weights(inner.text_encoders["text_encoder"])


@pytest.mark.slow
@pytest.mark.parametrize(("file", "scale"), [(AVERAGED, 1.0), (KOHYA, 0.8), ("", -0.5)])
def test_the_base_is_what_diffusers_fuses(lora, layout, file, scale):
    """For denoiser and text encoder, at any scale: W + scale · (W' − W). A folder is that of its Diffusers file."""
    folder, unet, encoder = lora
    base = load(str(layout("sd15")))
    model = load(str(layout("sd15")), adapters=[f"{folder / file}:{scale}"])
    networks = [(model.denoiser, base.denoiser, unet)]
    networks.append((model.text_encoders["text_encoder"], base.text_encoders["text_encoder"], encoder))
    for network, before, merged in networks:
        state, differing = network.state_dict(), 0
        assert state.keys() == before.state_dict().keys()
        for name, value in before.state_dict().items():
            expected = value + scale * (merged[name] - value)
            assert torch.allclose(state[name], expected, atol=1e-6), name
            differing += not torch.equal(state[name], value)
        assert differing >= 2
    pipeline = layouts.STOCK["sd15"].from_pretrained(layout("sd15"))
    pipeline.load_lora_weights(folder, weight_name=AVERAGED)
    pipeline.fuse_lora(lora_scale=scale)
    pipeline.unload_lora_weights()
    fused = pipeline.unet.state_dict()
    assert all(torch.allclose(fused[name], value, atol=1e-5) for name, value in model.denoiser.state_dict().items())
    assert model.denoiser_content != base.denoiser_content
    assert model.text_content != base.text_content
    assert model.image_content == base.image_content


def test_several_add_up(lora, layout):
    folder = lora[0]
    twice = load(str(layout("sd15")), adapters=[f"{folder}:0.5", f"{folder / KOHYA}:0.5"]).denoiser.state_dict()
    once = load(str(layout("sd15")), adapters=str(folder)).denoiser.state_dict()
    assert all(torch.allclose(twice[name], value, atol=1e-5) for name, value in once.items())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none", "lora"])
def test_a_run_on_such_a_base(lora, layout, train, tmp_path, mode):
    """Resumes bit by bit, samples and is the base of the next; of a full run, the export has the adapters in it."""
    folder, unet, _ = lora
    settings = [f"model.path={layout('sd15')}", f"model.adapters=['{folder}:0.5']", f"adapter={mode}", "save_every=2"]
    settings += ["steps=4", "validate_every=0", "sample_every=0", "optimizer.lr=1e-3", "ema=none", "model=sd15"]
    whole = train(tmp_path / "whole", *settings)
    train(tmp_path / "run", *settings, "stop_at=2")
    run = train(tmp_path / "run", *settings)
    name = AVERAGED if mode == "lora" else "unet/diffusion_pytorch_model.safetensors"
    ours, theirs = (load_file(each.folder / "model" / name) for each in (run, whole))
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    assert run.info["base_adapters"][0].items() >= {"scale": 0.5, "file": str(folder / AVERAGED)}.items()
    trained = load_pipeline(run.folder).unet
    if mode == "lora":
        trained.fuse_lora()
        trained.unload_lora()
    of_checkpoint = load_pipeline(run.folder / "checkpoints" / "step-000004", "raw").unet
    next_base = load(str(run.folder)).denoiser.state_dict()
    before = load(str(layout("sd15"))).denoiser.state_dict()
    for key, value in trained.state_dict().items():
        assert torch.allclose(next_base[key], value, atol=1e-5)
        assert (value - before[key] - 0.5 * (unet[key] - before[key])).abs().max() < 0.02  # four steps further
    assert torch.allclose(merged_weights(of_checkpoint)["conv_in.weight"], trained.state_dict()["conv_in.weight"])
    if mode == "lora":
        shutil.copy(folder / KOHYA, tmp_path / "lora.safetensors")
        assert use_base(compose("model.adapters=['a.safetensors:0.5']", "model.vae=a/b").model) == (
            'from diffusers import AutoencoderKL\npipeline.vae = AutoencoderKL.from_pretrained("a/b")\n'
            'pipeline.load_lora_weights("a.safetensors")\npipeline.fuse_lora(lora_scale=0.5)\n'
            "pipeline.unload_lora_weights()\n"
        )


@pytest.mark.slow
def test_another_file_under_the_same_name_is_noticed(lora, layout, train, tmp_path):
    file = shutil.copy(lora[0] / KOHYA, tmp_path / "lora.safetensors")
    settings = ["steps=2", "validate_every=0", "sample_every=0", f"model.adapters=['{file}']", "save_every=1"]
    settings += ["model=sd15", f"model.path={layout('sd15')}"]
    paused = train(tmp_path / "run", *settings, "stop_at=1")
    moved = shutil.copy(file, tmp_path / "elsewhere.safetensors")
    facts = {"base_adapters": adapter_facts([str(moved)])}
    paused.refuse_changes(facts)  # the same content at another place
    save_file({name: value * 2 for name, value in load_file(file).items()}, file)
    with pytest.raises(ConfigError, match="began with a different base_adapters"):
        train(tmp_path / "run", *settings)
    with pytest.raises(ConfigError, match=r"lora.safetensors has changed since the run was trained on it"):
        load_pipeline(tmp_path / "run")


@pytest.fixture(scope="module")
def vaes(layout, tmp_path_factory):
    """Another autoencoder: as a folder, in the original layout, and with other channels."""
    root = tmp_path_factory.mktemp("vaes")
    vae = AutoencoderKL.from_pretrained(layout("sd15"), subfolder="vae", torch_dtype=torch.float32)
    for weight in vae.parameters():
        weight.data *= 1.01
    vae.save_pretrained(root / "alone")
    vae.save_pretrained(root / "pipeline" / "vae")
    blocks = len(vae.config.block_out_channels)
    state = vae.state_dict()
    save_file({vae_name(name, blocks): value.clone() for name, value in state.items()}, root / "original.safetensors")
    save_file({name: value.clone() for name, value in state.items()}, root / "diffusers.safetensors")
    kinds = {"down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"]}
    AutoencoderKL(latent_channels=16).save_pretrained(root / "sixteen")
    AutoencoderKL(**kinds, block_out_channels=[8], norm_num_groups=4).save_pretrained(root / "flat")
    save_file({"x": torch.zeros(1)}, root / "nothing.safetensors")
    return root, state


@pytest.mark.parametrize("name", ["alone", "pipeline", "original.safetensors", "diffusers.safetensors"])
def test_the_autoencoder_is_the_chosen_one(vaes, layout, tmp_path, name):
    """Its latents have a place of their own in the cache, and the export has it."""
    root, state = vaes
    model, base = load(str(layout("sd15")), vae=str(root / name)), load(str(layout("sd15")))
    own = model.autoencoder.state_dict()
    assert all(torch.equal(own[key], value) for key, value in state.items())
    assert model.image_content != base.image_content
    assert model.denoiser_content == base.denoiser_content
    model.pipeline(DDIMScheduler()).save_pretrained(tmp_path / "model")
    exported = AutoencoderKL.from_pretrained(tmp_path / "model" / "vae").state_dict()
    assert all(torch.equal(exported[key], value) for key, value in state.items())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sixteen", "has 16 channels in its latents, and the denoiser of .* works with 4"),
        ("flat", "has 1 levels, and the denoiser of .* works with 3"),
        ("nothing.safetensors", "does not fit the autoencoder of"),
        ("nowhere", "there is no such folder or .safetensors file, and it is no Hub id"),
    ],
)
def test_autoencoders_that_do_not_fit_are_refused(vaes, layout, name, message):
    with pytest.raises(ConfigError, match=f"model.vae=.*{name}.* ?{message}"):
        load(str(layout("sd15")), vae=str(vaes[0] / name))


def test_the_base_of_a_run_has_its_autoencoder(vaes, lora, layout, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(lora[0], run / "model")
    settings = {"path": str(layout("sd15")), "vae": str(vaes[0] / "alone"), "adapters": [f"{lora[0]}:-1"]}
    (run / "config.yaml").write_text(json.dumps({"model": settings}))
    model, base = load(str(pipeline_of_run(run))), load(str(layout("sd15")))
    assert torch.equal(model.autoencoder.state_dict()["encoder.conv_in.weight"], vaes[1]["encoder.conv_in.weight"])
    merged, before = model.denoiser.state_dict(), base.denoiser.state_dict()
    assert all(torch.allclose(merged[name], value, atol=1e-5) for name, value in before.items())  # -1 and +1
    assert [place for place, _ in ((each.file, each.scale) for each in parse_adapters([str(run)]))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.adapters=[nowhere.safetensors:0.8]"], "model.adapters=nowhere.safetensors: there is no such file"),
        (["model.adapters=[conf]"], "model.adapters=conf: the folder holds no adapters .*give a file, or the folder"),
        (["model.adapters=[README.md]"], "model.adapters=README.md must be a .safetensors file"),
        (["model.vae=./nowhere"], "model.vae=./nowhere: there is no such folder"),
        (["model.vae=nowhere.ckpt"], "model.vae=nowhere.ckpt: there is no such folder"),
    ],
)
def test_settings_are_checked_before_anything_is_loaded(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_plan(compose(*settings))


def test_a_lora_for_another_model_is_named(lora, layout, tmp_path):
    file = tmp_path / "lora.safetensors"
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1, 1)}, file)
    settings = ["model=sd15", f"model.path={layout('sd15')}", f"model.adapters=['{file}']"]
    with pytest.raises(ConfigError, match=r"model.adapters=.*lora.safetensors is for another model: .* lora_unet_x"):
        build(compose(*settings), "model")
    with pytest.raises(ConfigError, match=r"is for another model: .*"):
        load("tiny", adapters=str(lora[0] / KOHYA))


HOSTILE = {
    "settings that are a list": {"metadata": []},
    "settings nested without an end": {"metadata": "[" * 100_000},
    "an alpha that is text": {"metadata": {"unet.lora_alpha": "x"}},
    "an alpha beyond a float": {"metadata": {"unet.lora_alpha": 10**400}},
    "an alpha that is no number": {"metadata": {"unet.lora_alpha": float("nan")}},
    "patterns that are a list, of an alpha of null": {"metadata": {"unet.alpha_pattern": [1], "unet.lora_alpha": None}},
    "a matrix without rows and columns": {"weight": torch.tensor(1.0)},
    "weights that are not finite": {"weight": torch.full((2, 32), float("nan"))},
    "whole numbers": {"weight": torch.ones(2, 32, dtype=torch.int64)},
    "several alphas of a layer": {"alpha": torch.ones(3)},
    "a part of the factors": {"only": "lokr_w1"},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_no_training_leaves_behind_is_refused_and_never_merged(lora, layout, tmp_path, name):
    changes = HOSTILE[name]
    state = load_file(lora[0] / AVERAGED)
    first = next(key for key in state if key.startswith("unet.") and "lora_A" in key)
    layer = first.removesuffix("lora_A.weight")
    if "weight" in changes:
        state[first] = changes["weight"]
    if "alpha" in changes:
        state[f"{layer}alpha"] = changes["alpha"]
    if "only" in changes:
        state = {f"{layer}{changes['only']}": torch.ones(3, 3)}
    metadata = changes.get("metadata", {})
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    save_file(state, tmp_path / "x.safetensors", {"lora_adapter_metadata": text})
    with pytest.raises(ConfigError, match=r"x.safetensors"):
        load(str(layout("sd15")), adapters=[str(tmp_path / "x.safetensors")])


def test_peft_s_settings_beside_a_file_belong_to_it(lora, layout, tmp_path):
    """The alpha in them counts, so a base with the file merged is another one when they change."""
    state = {
        f"base_model.model.{key.removeprefix('unet.')}": value for key, value in load_file(lora[0] / AVERAGED).items()
    }
    state = {key: value for key, value in state.items() if "text_encoder" not in key}
    save_file(state, tmp_path / "adapter_model.safetensors")
    networks = []
    for alpha in (1, 2, [3]):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": alpha}))
        if alpha == [3]:
            with pytest.raises(ConfigError, match="has an alpha that is no number"):
                load(str(layout("sd15")), adapters=[str(tmp_path)])
        else:
            networks.append(load(str(layout("sd15")), adapters=[str(tmp_path)]).denoiser.state_dict())
    base = load(str(layout("sd15"))).denoiser.state_dict()
    for key, value in base.items():
        once, twice = networks[0][key] - value, networks[1][key] - value
        assert torch.allclose(twice, 2 * once, atol=1e-5)


@pytest.mark.parametrize("content", ["[]", "null", "[" * 100_000])
def test_settings_of_an_autoencoder_that_are_none_are_named(layout, tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"model.vae=.*config.json .*; choose another"):
        load(str(layout("sd15")), vae=str(tmp_path))
