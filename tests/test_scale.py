"""The arithmetic of docs/scale.md, and a sweep of stand-in jobs within the bounds that the page states."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
CORE_SECONDS = 0.05  # of the launcher for each job
PARENT_MB, COMPARE_SECONDS, PAGE_MB = 300, 60, 10


@pytest.fixture(scope="module", autouse=True)
def on_path():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield


def test_the_page_has_the_tables_of_the_script():
    import scale

    models, page = scale.read_counts(), (ROOT / "docs" / "scale.md").read_text()
    assert scale.memory_table(models) in page
    assert scale.network_table(models) in page


def test_bytes_of_training_are_those_of_its_tensors():
    """Weights, gradients and AdamW's moments of a layer, with and without a master copy."""
    import scale

    model = scale.Model("one layer", 64, 12, 0.0, None)
    layer = nn.Linear(4, 3, bias=False)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    moments = [value for value in optimizer.state[layer.weight].values() if value.ndim]
    in_float32 = sum(tensor.nbytes for tensor in (layer.weight, layer.weight.grad, *moments))
    assert model.held(scale.FLOAT32) == in_float32
    assert model.held(scale.ALONE) == in_float32 + layer.weight.bfloat16().nbytes
    assert model.held(scale.BF16_SR) == in_float32 / 2
    assert model.held(scale.FLOAT32, 8) == in_float32 / 8


def test_traffic_of_rings():
    import scale

    assert scale.all_reduce(100, 1) == 0
    assert scale.all_reduce(100, 2) == 100  # both send what they have
    assert scale.all_reduce(100, 512) == pytest.approx(200, rel=0.01)
    # A sum over all is a reduce-scatter and a gather; FSDP gathers once more.
    assert scale.sharded_traffic(25, 8) == pytest.approx(1.5 * scale.all_reduce(4 * 25, 8))
    assert scale.sharded_traffic(25, 8, micro_batches=4) == 4 * scale.sharded_traffic(25, 8)


@pytest.mark.slow
def test_what_is_kept_of_a_model_is_what_is_counted():
    import scale

    counted = scale.count("sd15", "Stable Diffusion 1.5", activations=False)
    (kept,) = (model for model in scale.read_counts() if model.name == counted.name)
    assert counted.operations == kept.operations
    assert counted.parameters == kept.parameters == 859_520_964


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("settings", [100, 1000])
def test_a_sweep_of_a_thousand_jobs(tmp_path, settings):
    """One command runs them, the same command has nothing left to do, and their comparison can be looked at."""
    import sweep_of_1000

    overrides = sweep_of_1000.varied(1000, settings)
    for _ in range(2):
        used = sweep_of_1000.run_sweep(tmp_path, overrides)
        assert used["cpu"] / 1000 < CORE_SECONDS
        assert used["peak_mb"] < PARENT_MB
    runs = list((tmp_path / "multirun" / "big").glob("*/run.json"))
    assert len(runs) == 1000
    assert {json.loads(run.read_text())["state"] for run in runs} == {"finished"}
    found = sweep_of_1000.run_compare(tmp_path)
    assert found["cpu"] < COMPARE_SECONDS  # the time on a machine that does nothing else
    assert found["page_mb"] < PAGE_MB


@pytest.mark.slow
def test_a_sweep_of_stand_ins(tmp_path):
    """The same with few jobs, so that CI sees it."""
    import sweep_of_1000

    used = sweep_of_1000.run_sweep(tmp_path, sweep_of_1000.varied(20, 10))
    assert used["peak_mb"] < PARENT_MB
    assert sweep_of_1000.run_compare(tmp_path)["page_mb"] < PAGE_MB
    os.truncate(tmp_path / "sweep.log", 0)
    sweep_of_1000.run_sweep(tmp_path, sweep_of_1000.varied(20, 10))
    assert "finished" in (tmp_path / "sweep.log").read_text()
