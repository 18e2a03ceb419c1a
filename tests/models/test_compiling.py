"""Denoisers are compiled as one graph, which the steps of a run use again and again: what CUDA graphs need."""

import pytest
import torch
from helpers import families
from helpers.runs import compose
from hydra.utils import instantiate
from torch import nn

from t2i.models.compiling import compile_denoiser, uncompiled


@pytest.fixture
def eager(monkeypatch):
    """The compiler finds graphs, and lets PyTorch compute them as ever; what breaks a graph raises."""
    compile = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: compile(self, backend="eager", fullgraph=True))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_modes(monkeypatch):
    calls = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **settings: calls.append(settings))
    for mode in (False, True, "reduce-overhead", "max-autotune-no-cudagraphs"):
        compile_denoiser(nn.Linear(1, 1), mode)
    assert calls == [
        {},
        {"mode": "reduce-overhead", "dynamic": False},
        {"mode": "max-autotune-no-cudagraphs", "dynamic": False},
    ]


def test_cuda_graphs_are_for_the_steps_alone(eager):
    """Another shape would be another graph."""

    class Network(nn.Module):
        def forward(self, x):
            calls.append(torch.compiler.is_compiling())
            return 2 * x

    layer, calls = Network(), []
    compile_denoiser(layer, "reduce-overhead")
    layer(torch.ones(1, 2))
    with torch._dynamo.config.patch(error_on_recompile=True), uncompiled("reduce-overhead"), torch.no_grad():
        layer.eval()(torch.ones(3, 2))
    assert calls[-1] is False


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "sdxl", *families.PIPELINES])
def test_the_steps_of_a_denoiser_are_one_graph(eager, layout, tmp_path, name):
    folder = families.save(name, tmp_path / name) if name in families.PIPELINES else layout(name)
    model = instantiate(compose(f"model={name}", f"model.path={folder}").model)
    pixels = torch.zeros(2, 3, 64, 64)
    x = model.encode(pixels)[0]
    text = model.embed(["a cat", "a red cat"]) | {"time_ids": torch.zeros(2, 6)}
    model.denoiser.train()
    compile_denoiser(model.denoiser, "reduce-overhead")
    with uncompiled("reduce-overhead"), torch.no_grad():  # as in the first validation; Z-Image makes a table, once
        model.denoise(x, torch.tensor([10, 900]), text)
    for step, t in enumerate((torch.tensor([10, 900]), torch.tensor([3, 5]))):
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            model.denoise(x, t, text).square().mean().backward()
