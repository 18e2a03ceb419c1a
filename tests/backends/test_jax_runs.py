"""Runs with backend=jax are those of PyTorch, with the same records, and each goes on from the other's checkpoints."""

import json

import pytest
import torch
from helpers.runs import untimed
from safetensors.torch import load_file

from t2i.models.converted import users_cache

pytest.importorskip("jax")

pytestmark = pytest.mark.slow  # JAX compiles for seconds to minutes
LORA = ["adapter=lora", "adapter.rank=2", "ema=post_hoc", "ema.snapshots=4", "error=huber", "optimizer=adafactor"]
MEMORY = ["micro_batch_size=8", "batch_size=16", "gradient_checkpointing=true", "backend.weights=sliced"]


def metrics(run):
    return untimed(run.metrics())


def assert_follows(run, other, rel):
    for ours, theirs in zip(metrics(run), metrics(other), strict=True):
        assert ours == pytest.approx(theirs, rel=rel)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T2I_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def in_torch(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "torch")


@pytest.fixture(scope="module")
def in_jax(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "jax", "backend=jax")


def test_a_run_is_that_of_pytorch(in_torch, in_jax):
    """Validation, samples, checkpoints and export included."""
    assert_follows(in_jax, in_torch, rel=1e-4)
    facts = json.loads((in_jax.folder / "run.json").read_text())
    assert (facts["backend"], facts["devices"]) == ("jax", 8)
    for name in ("diffusion_pytorch_model", "diffusion_pytorch_model.non_ema"):
        ours, theirs = (load_file(run.folder / "model" / "unet" / f"{name}.safetensors") for run in (in_jax, in_torch))
        assert ours.keys() == theirs.keys()
        for key, weight in theirs.items():
            torch.testing.assert_close(ours[key], weight, rtol=1e-4, atol=1e-5)
    assert sorted(file.name for file in (in_jax.folder / "samples").iterdir()) == sorted(
        file.name for file in (in_torch.folder / "samples").iterdir()
    )


def test_a_run_that_was_paused_has_the_same_bits(train, in_jax, tmp_path):
    """And finds in the cache what the other run has compiled, as the jobs of a sweep do.

    That is the user's own, wherever `cache_dir` is: programs are executed, and a configuration may be a stranger's.
    """
    folder, cache = tmp_path / "paused", users_cache() / "jax"
    compiled = sorted(file.name for file in cache.glob("jit_*-cache"))
    assert any(name.startswith("jit_gradients") for name in compiled)
    train(folder, "backend=jax", "stop_at=5")
    again = train(folder, "backend=jax")
    assert sorted(file.name for file in cache.glob("jit_*-cache")) == compiled
    assert metrics(again) == metrics(in_jax)
    for name in ("denoiser", "ema"):
        file = f"checkpoints/step-000010/{name}.safetensors"
        ours, theirs = load_file(folder / file), load_file(in_jax.folder / file)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_each_goes_on_from_the_checkpoint_of_the_other(train, in_torch, tmp_path):
    folder = tmp_path / "mixed"
    train(folder, "stop_at=3")
    train(folder, "backend=jax", "stop_at=6")
    assert_follows(train(folder), in_torch, rel=1e-4)


def test_adapters_and_what_saves_memory(train, tmp_path):
    """LoRA with another error, optimizer and average; accumulated, recomputed and sliced over the devices."""
    ours = train(tmp_path / "jax", "backend=jax", *LORA, *MEMORY)
    theirs = train(tmp_path / "torch", *LORA, *MEMORY[:2])
    assert_follows(ours, theirs, rel=1e-4)
    names = sorted(file.name for file in (theirs.folder / "model").iterdir())
    assert sorted(file.name for file in (ours.folder / "model").iterdir()) == names


@pytest.mark.long
def test_a_flow_is_that_of_pytorch(train, tmp_path):
    settings = ["model=tiny_flow", "model.path=tiny_flow", "steps=4", "validate_every=4", "sample_every=4"]
    ours, theirs = train(tmp_path / "jax", "backend=jax", *settings), train(tmp_path / "torch", *settings)
    assert_follows(ours, theirs, rel=1e-4)


@pytest.mark.long
def test_forty_steps_of_the_tiny_model_end_where_pytorch_ends(train, tmp_path):
    settings = ["model.path=tiny", "steps=40", "sample_every=0", "validate_every=40", "save_every=40"]
    ours = train(tmp_path / "jax", "backend=jax", *settings)
    theirs = train(tmp_path / "torch", *settings)
    assert ours.final["val/loss"] == pytest.approx(theirs.final["val/loss"], rel=1e-3)
