"""What a run needs in memory: the same without weights as with them."""

import functools
import json
import shutil

import pytest
import torch
from helpers import families, layouts
from helpers.runs import compose

from t2i.experiment.assembly import load_model
from t2i.experiment.needs import autocast_on_cpu, bytes_per_element, full_length, needs, peak_of_step, size
from t2i.experiment.plan import make_plan
from t2i.hardware.host_memory import peak_memory
from t2i.optim.trained_weights import hold_weights

NAMES = [*layouts.STOCK, *families.PIPELINES]
SETTINGS = ("dataset.resolution=64", "micro_batch_size=2", "batch_size=4", "adapter.rank=4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a small pipeline."""

    def save(name):
        return (layouts if name in layouts.STOCK else families).save(name, tmp_path_factory.mktemp("with") / name)

    return functools.cache(save)


@pytest.fixture(scope="module")
def settings_only(folder, tmp_path_factory):
    """A copy of it without weights."""

    def copy(name):
        no_weights = shutil.ignore_patterns("*.safetensors", "*.bin")
        return shutil.copytree(folder(name), tmp_path_factory.mktemp("without") / name, ignore=no_weights)

    return functools.cache(copy)


def measured(cfg):
    """The weights and the peak of a step that is computed, with captions of full length."""
    plan = make_plan(cfg)
    autocast = autocast_on_cpu(plan.precision)
    model = load_model(cfg, plan, autocast)
    model.denoiser.train().forward = autocast(model.denoiser.forward)
    trained = hold_weights(model.denoiser, plan.precision)
    x = model.encode(torch.zeros(2, 3, 64, 64))[0].contiguous()  # as the cache gives it
    text = full_length(model.embed(["a caption"] * 2))
    return model, trained, peak_of_step(model, x, text, rounds=2)


def settings(name, adapter, *more):
    rank = [text for text in SETTINGS if adapter == "lora" or "rank" not in text]
    return [f"model={name}", f"adapter={adapter}", *rank, *more]


CASES = [
    (name, adapter)
    for name in NAMES
    for adapter in ("none", "lora")
    if (name, adapter) != ("pixart", "lora")  # into which Diffusers loads no adapters
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "adapter"), CASES)
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.long)])
def test_every_family_needs_the_same_without_weights(name, adapter, precision, folder, settings_only):
    """In bf16 PyTorch takes the statistics of norms for bf16, which the kernels keep in float32."""
    chosen = settings(name, adapter, f"precision={precision}", "attention=sdpa")
    cfg = compose(*chosen, f"model.path={settings_only(name)}")
    found = needs(cfg, make_plan(cfg))
    model, trained, peak = measured(compose(*chosen, f"model.path={folder(name)}"))
    weights, parameters = trained.weights.values(), [*model.denoiser.parameters()]
    assert found.parameters == sum(weight.numel() for weight in parameters)
    assert found.trained_parameters == sum(weight.numel() for weight in weights)
    assert found.frozen == size(w for w in (*parameters, *model.denoiser.buffers()) if not w.requires_grad)
    assert found.updated == size(weights)
    assert found.gradients == size(weight.grad for weight in weights if weight.grad is not None)
    assert found.gradients + found.activations == (peak if precision == "fp32" else pytest.approx(peak, rel=0.05))
    networks = {"vae": model.autoencoder, **model.text_encoders}
    assert found.encoders == {name: size(network.parameters()) for name, network in networks.items()}


def needs_with(name, path, *overrides):
    cfg = compose(f"model={name}", f"model.path={path}", "dataset.resolution=64", *overrides)
    return needs(cfg, make_plan(cfg))


@pytest.mark.slow
def test_recomputing_needs_fewer_activations_and_nothing_else_changes(settings_only):
    kept, recomputed = (
        needs_with("sd35", settings_only("sd35"), f"gradient_checkpointing={choice}") for choice in (False, True)
    )
    assert recomputed.activations < kept.activations
    assert recomputed.training - recomputed.activations == kept.training - kept.activations


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "dtype", "expected"),
    [
        ("adamw", torch.float32, (8, 4)),  # two moments in the type of the weights, an average in float32
        ("adamw_sr", torch.bfloat16, (4, 4)),
        ("adafactor", torch.bfloat16, (2 * 2 * 512 / 512**2, 4)),  # a row and a column
    ],
)
def test_optimizer_and_average_are_measured(option, dtype, expected):
    cfg = compose(f"optimizer={option}", "ema=standard")
    assert bytes_per_element(cfg, dtype) == pytest.approx(expected)
    assert bytes_per_element(compose(f"optimizer={option}", "ema=none"), dtype)[1] == 0


@pytest.mark.slow
def test_a_quantised_base_needs_less_and_its_adapters_the_same(settings_only):
    plain, int8, nf4 = (
        needs_with("flux1", settings_only("flux1"), "adapter=lora", "precision=bf16", f"model.quantize={choice}")
        for choice in ("null", "int8", "nf4")
    )
    assert plain.frozen > int8.frozen
    assert plain.trained == int8.trained == nf4.trained
    assert plain.trained_parameters == nf4.trained_parameters
    assert nf4.activations == int8.activations > plain.activations


@pytest.mark.slow
def test_trained_text_encoders_are_a_part_of_it(settings_only):
    path = settings_only("sd15")
    without, found = (
        needs_with("sd15", path, "adapter=lora", "precision=bf16", f"adapter.text_encoder={choice}")
        for choice in (False, True)
    )
    assert found.trained_parameters > without.trained_parameters
    assert found.frozen > without.frozen
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.slow
@pytest.mark.long
def test_no_memory_is_taken(settings_only, tmp_path):
    """A transformer of 1.9 B parameters, which would be 3.8 GB."""
    big = shutil.copytree(settings_only("sd35"), tmp_path / "big")
    file = big / "transformer" / "config.json"
    width = {"num_attention_heads": 24, "attention_head_dim": 64, "caption_projection_dim": 1536, "num_layers": 24}
    file.write_text(json.dumps(json.loads(file.read_text()) | width))
    before = peak_memory()
    assert needs_with("sd35", big, "adapter=lora").parameters > 1e9
    assert peak_memory() - before < 300e6
