"""Adapters leave the weights of the base as they were, bit for bit, and stock Diffusers loads them."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from helpers import layouts
from helpers.runs import compose
from hydra.utils import instantiate
from safetensors.torch import load_file

from t2i.config import ConfigError
from t2i.experiment.plan import make_plan
from t2i.models.lora import LoRA
from t2i.models.lora_settings import AVERAGED, RAW
from t2i.models.stable_diffusion import load
from t2i.optim.trained_weights import hold_weights
from t2i.publishing.card_code import use_adapter
from t2i.sampling.pipelines import load_pipeline

pytestmark = pytest.mark.slow


def pixels(pipeline):
    """A sample of a stock pipeline, before rounding to bytes."""
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    return pipeline("red apple", latents=noise, num_inference_steps=2, output_type="np").images


def stock(layout, name, run, file=AVERAGED):
    """The original base with the adapters of a run, as any user would load them."""
    base = layouts.STOCK[name].from_pretrained(layout(name))
    base.scheduler = DDIMScheduler.from_pretrained(run.folder / "model" / "scheduler")
    base.load_lora_weights(run.folder / "model", weight_name=file)
    return base


@pytest.fixture(scope="module")
def trained(train, layout, tmp_path_factory):
    """Train with an adapter, three steps; returns the run and the pipeline with the raw weights after training."""

    def trained(name, *overrides):
        exported = {}
        export = LoRA.export

        def recording(self, model, *rest):
            exported["pipeline"] = model.pipeline(None)
            return export(self, model, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LoRA, "export", recording)
            folder = tmp_path_factory.mktemp("runs") / "run"
            settings = ["steps=3", "save_every=3", "validate_every=0", "sample_every=0", "optimizer.lr=0.05"]
            run = train(folder, f"model={name}", f"model.path={layout(name)}", *settings, *overrides)
        return run, exported["pipeline"]

    return trained


@pytest.fixture(scope="module")
def lora(trained):
    return trained("sd15", "adapter=lora", "adapter.rank=4", "adapter.alpha=8")


def test_nothing_but_the_adapters_is_trained(lora, layout):
    """The base has the same bits as before, in the denoiser and in the frozen networks."""
    run, pipeline = lora
    before = layouts.STOCK["sd15"].from_pretrained(layout("sd15"))
    for part in ("unet", "vae", "text_encoder"):
        expected = getattr(before, part).state_dict()
        after = {name.replace(".base_layer", ""): value for name, value in getattr(pipeline, part).state_dict().items()}
        assert {name for name in after if "lora" not in name} == expected.keys()
        assert all(torch.equal(after[name], value) for name, value in expected.items())
    trained = {name: value for name, value in pipeline.unet.named_parameters() if value.requires_grad}
    assert all("lora_" in name for name in trained)
    assert run.info["trained_parameters"] == sum(value.numel() for value in trained.values())
    assert all(value.any() for name, value in trained.items() if "lora_B" in name)  # they began at zero


def test_a_checkpoint_holds_the_adapters_only(lora):
    run, pipeline = lora
    checkpoint = run.folder / "checkpoints" / "step-000003"
    weights, average = (load_file(checkpoint / f"{name}.safetensors") for name in ("denoiser", "ema"))
    adapters = {name for name in pipeline.unet.state_dict() if "lora_" in name}
    assert weights.keys() == adapters
    assert average.keys() == adapters | {"updates"}
    optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    assert len(optimizer["state"]) == len(adapters)


def test_sampling_a_run_or_a_checkpoint_is_loading_the_adapters_into_the_base(lora, layout):
    """Both for the averaged and for the raw adapters, which differ."""
    run, _ = lora
    averaged, raw = (pixels(stock(layout, "sd15", run, file)) for file in (AVERAGED, RAW))
    assert not np.allclose(averaged, raw, atol=1e-2)
    for source in (run.folder, run.folder / "checkpoints" / "step-000003"):
        assert np.allclose(pixels(load_pipeline(source)), averaged, atol=1e-4)
        assert np.allclose(pixels(load_pipeline(source, "raw")), raw, atol=1e-4)


def test_loading_without_a_file_name_gives_the_averaged_adapters(lora, layout):
    run, _ = lora
    base = layouts.STOCK["sd15"].from_pretrained(layout("sd15"))
    base.load_lora_weights(run.folder / "model")
    average = load_file(run.folder / "model" / AVERAGED)
    loaded = {f"unet.{name.replace('.default_0', '')}": value for name, value in base.unet.state_dict().items()}
    assert all(torch.equal(loaded[name], value) for name, value in average.items())


def test_gradient_checkpointing_changes_rounding_only(lora, trained):
    """model=sd15 recomputes activations; without it, the adapters learn the same."""
    recomputed, _ = lora
    kept, _ = trained("sd15", "adapter=lora", "adapter.rank=4", "adapter.alpha=8", "gradient_checkpointing=false")
    ours, theirs = (load_file(run.folder / "model" / RAW) for run in (recomputed, kept))
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in ours)


def test_the_code_in_the_model_card_loads_them(lora, layout):
    run, _ = lora
    model, names = run.folder / "model", {}
    exec(use_adapter(str(layout("sd15")), str(model), "DDIMScheduler"), names)
    assert np.array_equal(pixels(names["pipeline"]), pixels(stock(layout, "sd15", run)))


ADAPTERS = {
    "dora": ("sd15", "adapter=dora"),
    "convolutions and text": (
        "sdxl",
        "adapter=lora",
        "adapter.target_modules=[conv1,to_v]",
        "adapter.init=gaussian",
        "adapter.text_encoder=true",
    ),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_merged_adapters_sample_what_loaded_adapters_sample(trained, layout, case):
    """A checkpoint samples the same, too; without the adapters of any one network the image is another."""
    name, *overrides = ADAPTERS[case]
    run, pipeline = trained(name, *overrides, "adapter.rank=4", "adapter.alpha=2")
    adapted = {part for part, module in pipeline.components.items() if getattr(module, "peft_config", None)}
    assert adapted == ({"unet"} if case == "dora" else {"unet", "text_encoder", "text_encoder_2"})
    weights = [named for part in adapted for named in pipeline.components[part].named_parameters()]
    assert all(weight.any() for name, weight in weights if "lora_B" in name and weight.requires_grad)

    stocked = stock(layout, name, run)
    loaded = pixels(stocked)
    assert np.allclose(pixels(load_pipeline(run.folder / "checkpoints" / "step-000003")), loaded, atol=1e-4)
    for part in adapted:
        module = getattr(stocked, part)
        module.disable_adapters()
        assert not np.allclose(pixels(stocked), loaded, atol=1e-2)
        module.enable_adapters()
    stocked.fuse_lora()
    stocked.unload_lora_weights()
    assert np.allclose(pixels(stocked), loaded, atol=1e-4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("adapter.rank=0", "adapter.rank=0 must be positive"),
        ("adapter.alpha=-1", "adapter.alpha=-1 must be positive"),
        ("adapter.dropout=1", "adapter.dropout=1 must be a fraction"),
        ("adapter.init=svd", "adapter.init=svd is not known; choose from kaiming, gaussian"),
        ("model.pretrained=false", "model.pretrained=false leaves no base to adapt; use adapter=none"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_loaded(override, message):
    with pytest.raises(ConfigError) as error:
        make_plan(compose("adapter=lora", override))
    assert message in str(error.value)


def test_missing_layers_are_named(layout):
    adapter = instantiate(compose("adapter=lora", "adapter.target_modules=[to_x]").adapter)
    with pytest.raises(ConfigError, match=r"adapter.target_modules: no layer is called to_x; did you mean .*to_"):
        adapter.attach(load(str(layout("sd15"))))


def test_a_checkpoint_of_other_weights_is_refused(layout):
    adapter = instantiate(compose("adapter=lora").adapter)
    trained = hold_weights(adapter.attach(load(str(layout("sd15")))).denoiser)
    with pytest.raises(ConfigError, match="the checkpoint holds other weights than this run trains, such as "):
        trained.load_state_dict(load(str(layout("sd15"))).denoiser.state_dict())
