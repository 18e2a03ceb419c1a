"""What reading a denoiser takes at its peak, in a process of its own: at most one layer besides the result."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import SD3Transformer2DModel
from safetensors.torch import save_file

READ = """
import json, os, sys, torch
from diffusers import SD3Transformer2DModel
from t2i.hardware.host_memory import peak_memory
from t2i.models import quantized
from t2i.models.parts import PipelineParts

torch.set_num_threads(1)
for quantize in (None, "nf4", "int8"):
    if os.fork() == 0:  # a process of its own, whose libraries are imported
        before = peak_memory()
        parts = PipelineParts(sys.argv[1], {"transformer": SD3Transformer2DModel}, True, None,
                              {"transformer": torch.bfloat16}, quantize)
        sum(weight.detach().sum(dtype=torch.float32).item() for weight in parts["transformer"].parameters())
        print(json.dumps([quantize, peak_memory() - before]), flush=True)
        os._exit(0)
    os.wait()
"""
SHARD = 2**28  # bytes
LAYER = 2**28  # bytes to quantise the largest layer, in float32 several times, and what a first product takes


def write(folder: Path, layers: int, width: int) -> int:
    """Save a transformer in the shape of Stable Diffusion 3 shard by shard, in bf16; returns its bytes."""
    shape = {"num_layers": layers, "num_attention_heads": width // 64, "attention_head_dim": 64}
    with init_empty_weights():
        network = SD3Transformer2DModel(
            **shape, in_channels=16, out_channels=16, caption_projection_dim=width, joint_attention_dim=4096
        )
    folder.mkdir()
    network.save_config(folder)
    shards, sizes, noise = [{}], [0], 0.02 * torch.randn(2**20, dtype=torch.bfloat16)
    for name, weight in network.state_dict().items():
        value = noise.repeat(-(-weight.numel() // len(noise)))[: weight.numel()].reshape(weight.shape)
        if sizes[-1] + value.nbytes > SHARD:
            _save(folder, len(shards), shards[-1])
            shards[-1] = dict.fromkeys(shards[-1])
            shards.append({})
            sizes.append(0)
        shards[-1][name] = value
        sizes[-1] += value.nbytes
    _save(folder, len(shards), shards[-1])
    places = {name: _file(number) for number, shard in enumerate(shards, 1) for name in shard}
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": places}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return sum(sizes)


def _file(number: int) -> str:
    return f"diffusion_pytorch_model-{number:05}-of-99999.safetensors"


def _save(folder: Path, number: int, shard: dict) -> None:
    save_file(shard, folder / _file(number), metadata={"format": "pt"})


def peaks(folder: Path) -> dict[str | None, int]:
    """Bytes above what the process held before it read and used all weights, by model.quantize."""
    run = subprocess.run([sys.executable, "-c", READ, str(folder)], check=True, capture_output=True, text=True)
    return dict(json.loads(line) for line in run.stdout.splitlines())


@pytest.mark.parametrize(
    ("layers", "width"),
    [
        pytest.param(8, 768, marks=pytest.mark.slow, id="100M"),
        pytest.param(13, 1536, marks=[pytest.mark.slow, pytest.mark.long], id="1B"),
    ],
)
def test_reading_never_holds_a_second_copy(tmp_path, layers, width):
    (tmp_path / "model_index.json").write_text("{}")
    size, peak = write(tmp_path / "transformer", layers, width), peaks(tmp_path)
    print(f"{size / 2e9:.2f} B parameters, GB:", {kind: round(value / 1e9, 2) for kind, value in peak.items()})
    assert size < peak[None] < 1.3 * size
    assert peak["nf4"] < 0.4 * size + LAYER
    assert peak["int8"] < 0.65 * size + LAYER
