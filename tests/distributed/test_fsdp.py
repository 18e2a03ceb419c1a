"""A network sharded over two processes, with gloo on the CPU, trains as in one process."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from helpers import families
from helpers.launch import train
from safetensors.torch import load_file

from t2i.config import ConfigError
from t2i.distributed.fsdp import check, wrap_blocks
from t2i.optim.precision import FP32, Precision

SHARDER = Path(__file__).resolve().parent.parent / "helpers" / "sharder.py"
WRAPPED = {
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "BasicTransformerBlock,ResnetBlock2D",
}
AS_ONE = {"FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sharding")


@pytest.fixture(scope="module")
def launch(small, folder):
    def launch(processes, *overrides, environment=WRAPPED):
        # As `accelerate launch --use_fsdp` does.
        variables = {"FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true", **environment}
        variables["PYTHONPATH"] = os.pathsep.join([str(SHARDER.parent.parent), os.environ.get("PYTHONPATH", "")])
        settings = ["micro_batch_size=4", *small, *overrides]
        run = train(processes, settings, folder, variables, [str(SHARDER)])
        assert run.returncode == 0, run.stderr

    return launch


@pytest.fixture(scope="module")
def one(launch, folder):
    """The run of one process, whose gradients are clipped in all ten steps."""
    launch(1, "run=one", "max_grad_norm=0.1", "channels_last=false")  # as it must be when sharded
    return folder / "multirun" / "one"


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_training(run, one):
    assert [line["step"] for line in metrics(run)] == [line["step"] for line in metrics(one)]  # each written once
    for line, expected in zip(metrics(run), metrics(one), strict=True):
        for key in ("train/loss", "train/loss_unweighted", "train/grad_norm", "train/lr", "val/loss", "val/ema/loss"):
            assert (key in line) == (key in expected)
            if key in expected:
                assert line[key] == pytest.approx(expected[key], rel=1e-5), (key, expected["step"])
    files = [
        file.relative_to(one) for file in one.rglob("*") if file.is_file() and file.suffix in (".safetensors", ".pt")
    ]
    for file in files:
        compare(load(run / file), load(one / file))


def load(file):
    return load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)


def compare(state, expected):
    if isinstance(expected, dict):
        assert state.keys() == expected.keys()
        for key in expected:
            compare(state[key], expected[key])
    elif isinstance(expected, torch.Tensor):
        assert type(state) is torch.Tensor
        assert state.dtype == expected.dtype
        assert torch.allclose(state, expected, atol=1e-5)
    else:
        assert state == expected


@pytest.mark.slow
@pytest.mark.parametrize("units", [WRAPPED, pytest.param(AS_ONE, marks=pytest.mark.long)], ids=["blocks", "one unit"])
def test_a_sharded_network_trains_as_one_that_is_not_sharded(launch, folder, one, units):
    """Metrics, raw and averaged weights, the optimizer's moments; with two micro-batches in each process."""
    name = units["FSDP_AUTO_WRAP_POLICY"]
    launch(2, f"run={name}", "max_grad_norm=0.1", "micro_batch_size=2", environment=units)
    run = folder / "multirun" / name
    assert_same_training(run, one)
    assert metrics(run)[0]["val/loss"] == metrics(one)[0]["val/loss"]  # before the first step: the same bits
    assert all(line["train/clipped"] == 1 for line in metrics(run)[1:])
    info = json.loads((run / "run.json").read_text())
    assert (info["num_processes"], info["distributed"]) == (2, "FSDP")
    parts = {file.relative_to(one): file.read_text() for file in (one / "model").rglob("*.json")}
    assert all((run / file).read_text() == text for file, text in parts.items())
    StableDiffusionPipeline.from_pretrained(run / "model")("a heart", num_inference_steps=2)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.long)])
def test_any_number_of_processes_continues_the_run(launch, folder, one, first, then):
    """Sharded at first and not later, and the other way round."""
    name = f"{first}-{then}"
    launch(first, f"run={name}", "max_grad_norm=0.1", "stop_at=5")
    launch(then, f"run={name}", "max_grad_norm=0.1", "gradient_checkpointing=true")
    assert_same_training(folder / "multirun" / name, one)


@pytest.mark.slow
@pytest.mark.long
def test_adapters_train_in_a_sharded_network(launch, folder, layout):
    """Frozen weights are sharded, too. Both processes sample the only prompt: they make each prediction together."""
    settings = ["model=sdxl", f"model.path={layout('sdxl')}", "adapter=lora", "samples.prompts=[a heart]", "steps=4"]
    launch(1, "run=adapters-one", *settings)
    launch(2, "run=adapters-two", *settings)
    assert_same_training(folder / "multirun" / "adapters-two", folder / "multirun" / "adapters-one")


@pytest.mark.slow
def test_a_transformer_is_sharded_block_by_block_without_being_told(launch, folder):
    settings = ["model=sd35", f"model.path={families.save('sd35', folder / 'sd35')}", "steps=3", "samples.size=64"]
    launch(1, "run=blocks-one", *settings, "adapter=lora", "samples.prompts=[a heart]")
    launch(2, "run=blocks-two", *settings, "adapter=lora", "samples.prompts=[a heart]", environment={})
    assert_same_training(folder / "multirun" / "blocks-two", folder / "multirun" / "blocks-one")


def test_the_blocks_that_diffusers_names_are_wrapped_unless_the_launcher_says_otherwise(monkeypatch):
    monkeypatch.delenv("FSDP_AUTO_WRAP_POLICY", raising=False)
    network, plugin = families.PIPELINES["sd35"]().transformer, SimpleNamespace(auto_wrap_policy=None)
    wrap_blocks(plugin, network)
    assert plugin.transformer_cls_names_to_wrap == ["JointTransformerBlock"]
    monkeypatch.setenv("FSDP_AUTO_WRAP_POLICY", "NO_WRAP")
    chosen = SimpleNamespace(auto_wrap_policy=None)
    wrap_blocks(chosen, network)
    assert chosen.auto_wrap_policy is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"precision": Precision("fp16", "fp32")}, "precision=fp16 is not supported with FSDP; use precision=bf16"),
        ({"precision": Precision("bf16", "stochastic")}, "precision.weights=stochastic .*; use precision.weights=fp32"),
        ({"optimizer": "bitsandbytes.optim.AdamW8bit"}, "bitsandbytes.optim.AdamW8bit can't update slices"),
        ({"switches": {"compile": True}}, "compile=true is not supported with FSDP; use compile=false"),
        (
            {"switches": {"model.quantize": "nf4"}},
            "model.quantize=nf4 is not supported with FSDP; use model.quantize=null",
        ),
        ({"plugin": SimpleNamespace(activation_checkpointing=True)}, "use gradient_checkpointing=true"),
    ],
)
def test_what_does_not_shard_is_refused(changed, message):
    plugin = SimpleNamespace(activation_checkpointing=False, cpu_offload=None)
    supported = {"plugin": plugin, "precision": FP32, "optimizer": "torch.optim.AdamW", "switches": {"compile": False}}
    check(**supported)
    with pytest.raises(ConfigError, match=message):
        check(**supported | changed)
