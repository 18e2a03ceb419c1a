"""A quantised network is the one that Diffusers reads, with linear layers that multiply with dequantised weights."""

import functools

import bitsandbytes as bnb
import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from helpers import families, layouts
from helpers.runs import compose
from torch import nn
from torch.nn.functional import linear

import t2i.models.quantization
from t2i.cli.arguments import overrides_parser, parse_jobs
from t2i.config import ConfigError
from t2i.experiment.plan import make_plan
from t2i.models.pipeline_parts import open_pipeline
from t2i.models.quantization import check_quantize, count_parameters, held_bytes
from t2i.models.quantized import LAYERS

ERROR = {"nf4": 0.15, "int8": 0.015}  # of weights in 4 and in 8 bits, relative to them
CLASSES = {"sd35": SD3Transformer2DModel, "flux1": FluxTransformer2DModel, "sd15": UNet2DConditionModel}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    def save(name):
        return (layouts if name == "sd15" else families).save(name, tmp_path_factory.mktemp("bases") / name)

    return functools.cache(save)


def read(kind, folder, quantize, dtype=torch.bfloat16):
    part = "unet" if kind is UNet2DConditionModel else "transformer"
    pipeline = type("Pipeline", (), {"load_config": staticmethod(lambda *_, **__: {"_class_name": "Pipeline"})})
    parts, _ = open_pipeline(str(folder), pipeline, {part: kind}, True, None, None, {part: dtype}, quantize)
    return parts[part]


@pytest.mark.parametrize("quantize", LAYERS)
@pytest.mark.parametrize("name", CLASSES)
def test_all_but_linear_layers_are_as_diffusers_reads_them(folders, name, quantize):
    network, plain = (read(CLASSES[name], folders(name), kind) for kind in (quantize, None))
    assert count_parameters(network) == sum(weight.numel() for weight in plain.parameters())
    for path, module in plain.named_modules():
        ours = network.get_submodule(path)
        is_linear = type(module) is nn.Linear
        assert isinstance(ours, LAYERS[quantize]) == is_linear
        for own_name, weight in module.named_parameters(recurse=False):
            if is_linear and own_name == "weight":
                assert ours.weight.dtype in (torch.uint8, torch.int8)
                difference = (ours.dequantized(torch.float32) - weight.float()).norm() / weight.float().norm()
                assert 0 < difference < ERROR[quantize]
            else:
                assert torch.equal(getattr(ours, own_name), weight)
    assert all(torch.equal(network.get_buffer(path), buffer) for path, buffer in plain.named_buffers())


@pytest.fixture(scope="module", params=LAYERS)
def layer(request):
    torch.manual_seed(0)
    plain = nn.Linear(96, 80)
    layer = LAYERS[request.param].like(plain)
    layer.quantize(plain.weight.data)
    layer.bias = nn.Parameter(plain.bias.data, requires_grad=False)
    return layer


def test_the_weights_are_those_of_bitsandbytes(layer):
    """Its own layer, given the same weights, holds the same bits."""
    torch.manual_seed(0)
    plain = nn.Linear(96, 80)
    own = (
        bnb.nn.Linear4bit(96, 80, quant_type="nf4")
        if isinstance(layer, bnb.nn.Linear4bit)
        else bnb.nn.Linear8bitLt(96, 80, has_fp16_weights=False)
    )
    own.load_state_dict(plain.state_dict())
    ours, theirs = layer.state_dict(), own.to("cpu").state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.parametrize("shape", [(96,), (5, 96), (2, 3, 96)])
def test_output_and_gradient_are_those_of_a_linear_layer(layer, shape):
    x = torch.randn(shape, requires_grad=True)
    expected = linear(x, layer.dequantized(torch.float32), layer.bias)
    assert torch.equal(layer(x), expected)
    direction = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad(y, x, direction)[0] for y in (layer(x), expected))
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_autocast_multiplies_as_in_a_linear_layer(layer):
    x = torch.randn(5, 96)
    with torch.autocast("cpu", torch.bfloat16):
        expected = linear(x, layer.dequantized(torch.bfloat16), layer.bias)
        assert expected.dtype == torch.bfloat16
        assert torch.equal(layer(x), expected)


def test_training_changes_nothing_in_a_layer_and_neither_does_the_rest_of_the_batch(layer):
    """With the kernels of bitsandbytes, the outliers of one input would change how all are multiplied."""
    x = torch.randn(4, 96)
    layer.train()
    trained = layer(x)
    layer.eval()
    assert torch.equal(layer(x), trained)
    others = torch.cat([x[:1], 100 * x[1:]])
    assert torch.allclose(layer(others)[0], trained[0], rtol=1e-6, atol=1e-6)
    assert layer.bias.dtype == torch.float32  # bitsandbytes would round it


@pytest.mark.parametrize(("out", "into"), [(80, 96), (300, 1000), (7, 9)])
@pytest.mark.parametrize("quantize", LAYERS)
def test_the_bytes_of_a_layer_are_known_before_it_is_quantised(quantize, out, into):
    weight = nn.Linear(into, out).weight.data
    layer = LAYERS[quantize].like(nn.Linear(into, out))
    layer.quantize(weight)
    if quantize == "int8":
        held = [layer.weight, layer.state.SCB]
    else:
        state = layer.quant_state
        held = [layer.weight, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    assert held_bytes(weight, quantize) == sum(tensor.nbytes for tensor in held)


def test_files_of_another_network_are_refused(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = families.save("sd35", tmp_path / "sd35")
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    lacking = min(weights)
    save_file({name: value for name, value in weights.items() if name != lacking}, file)
    with pytest.raises(ConfigError, match=f"the files lack 1 weights of the network, such as {lacking}"):
        read(SD3Transformer2DModel, folder, "nf4")
    save_file(weights | {lacking: weights[lacking][..., :-1].contiguous()}, file)
    with pytest.raises(ConfigError, match=f"{lacking} has the shape"):
        read(SD3Transformer2DModel, folder, "nf4")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.quantize=fp4"], "model.quantize=fp4 is not known; choose from nf4, int8"),
        (["model.quantize=nf4"], "adapter=lora or dora, or model.quantize=null"),
        (["model.quantize=nf4", "adapter=lora", "model.pretrained=false"], "model.pretrained=false"),
    ],
)
def test_what_can_not_be_quantised_is_refused_before_anything_is_loaded(overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_plan(compose(*overrides))


def test_a_missing_package_is_refused_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(t2i.models.quantization.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 't2i\[quantize\]'"):
        check_quantize("int8", pretrained=True)
    check_quantize(None, pretrained=True)


def test_a_sweep_over_quantize_composes():
    _, jobs = parse_jobs(overrides_parser("check", "", ""), ["-m", "adapter=lora", "model.quantize=null,nf4,int8"])
    configs = [compose(*job.overrides) for job in jobs]
    for cfg in configs:
        make_plan(cfg)
    assert [cfg.model.quantize for cfg in configs] == [None, "nf4", "int8"]


@pytest.mark.gpu
@pytest.mark.parametrize("quantize", LAYERS)
def test_a_layer_moves_to_the_gpu_with_its_scales(quantize):
    plain = nn.Linear(96, 80)
    layer = LAYERS[quantize].like(plain)
    layer.quantize(plain.weight.data)
    layer.bias = nn.Parameter(plain.bias.data, requires_grad=False)
    network, x = nn.Sequential(layer), torch.randn(5, 96)
    expected = network(x)
    assert torch.allclose(network.to("cuda")(x.cuda()).cpu(), expected, rtol=1e-3, atol=1e-3)
