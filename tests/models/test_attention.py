import importlib.util

import diffusers
import pytest
import torch
from helpers import families

from t2i.config import ConfigError
from t2i.models.attention import recompute, resolve_attention, set_attention


@pytest.mark.parametrize(
    ("attention", "dtype", "on_gpu", "chosen"),
    [
        ("auto", "bf16", False, "by_size"),
        ("auto", "fp32", False, "sdpa"),
        ("auto", "bf16", True, "sdpa"),
        ("math", "fp32", True, "math"),
    ],
)
def test_attention(monkeypatch, attention, dtype, on_gpu, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    assert resolve_attention(attention, dtype) == chosen


@pytest.mark.parametrize(
    ("levels", "down", "mid", "up"),
    [
        (None, [True, True, True], True, [True, True, True]),
        (1, [True, False, False], False, [False, False, True]),
        (2, [True, True, False], False, [False, True, True]),
        (3, [True, True, True], False, [True, True, True]),
        (9, [True, True, True], False, [True, True, True]),
    ],
)
def test_the_outer_levels_are_recomputed(levels, down, mid, up):
    blocks = {"block_out_channels": (8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1, "attention_head_dim": 2}
    down_types, up_types = ("CrossAttnDownBlock2D",) * 3, ("CrossAttnUpBlock2D",) * 3
    unet = diffusers.UNet2DConditionModel(
        **blocks, cross_attention_dim=8, down_block_types=down_types, up_block_types=up_types
    )
    recompute(unet, levels)

    def all_or_none(block):
        (value,) = {part.gradient_checkpointing for part in block.modules() if hasattr(part, "gradient_checkpointing")}
        return value

    assert [all_or_none(block) for block in unet.down_blocks] == down
    assert [all_or_none(block) for block in unet.up_blocks] == up
    assert all_or_none(unet.mid_block) == mid


def test_missing_xformers_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"attention=xformers needs the package .*pip install 't2i\[xformers\]'"):
        resolve_attention("xformers", "fp16")


@pytest.mark.parametrize(
    "error", [NotImplementedError("No operator found for `memory_efficient_attention_forward`"), OSError("libcuda.so")]
)
def test_an_xformers_that_was_built_for_another_machine_is_refused(monkeypatch, small_pipeline, error):
    def refuse(self):
        raise error

    unet = diffusers.UNet2DConditionModel.from_pretrained(small_pipeline, subfolder="unet")
    monkeypatch.setattr(diffusers.UNet2DConditionModel, "enable_xformers_memory_efficient_attention", refuse)
    with pytest.raises(ConfigError, match=r"attention=xformers can't run here \(.*\); use attention=sdpa"):
        set_attention(unet, "xformers", "bf16")


def test_both_implementations_of_attention_agree(small_pipeline):
    unet = diffusers.UNet2DConditionModel.from_pretrained(small_pipeline, subfolder="unet")
    inputs = torch.randn(2, 4, 16, 16), torch.tensor([10, 900]), torch.randn(2, 24, 128)
    outputs = []
    for attention in ("math", "sdpa"):
        set_attention(unet, attention, "fp32")
        outputs.append(unet(*inputs).sample)
    assert torch.allclose(*outputs, atol=1e-5)


@pytest.mark.parametrize(("few", "same"), [(2 * 2 * 64 * 64, "math"), (2 * 2 * 64 * 64 - 1, "sdpa")])
def test_by_size_uses_plain_products_for_few_scores_and_the_fused_kernel_for_many(
    small_pipeline, monkeypatch, few, same
):
    """There are 2 images, 2 heads and 8 × 8 latents, which attend to themselves."""
    monkeypatch.setattr("t2i.models.attention.FEW_SCORES", few)
    unet = diffusers.UNet2DConditionModel.from_pretrained(small_pipeline, subfolder="unet")
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    hidden = torch.randn(2, 64, attention.query_dim)
    outputs = []
    for implementation in ("by_size", same):
        set_attention(unet, implementation, "fp32")
        outputs.append(attention(hidden))
    assert torch.equal(*outputs)


def test_transformers_have_the_backends_of_diffusers():
    """Where the family's attention goes through its dispatcher; UNets have none."""
    pipeline = families.PIPELINES["flux1"]()
    network, x = pipeline.transformer, torch.randn(1, 16, 16)
    text = {"encoder_hidden_states": torch.randn(1, 8, 24), "pooled_projections": torch.randn(1, 32)}
    ids, times = {"txt_ids": torch.zeros(8, 3), "img_ids": torch.rand(16, 3)}, torch.tensor([0.5])
    outputs = []
    for attention in ("by_size", "math", "native"):
        set_attention(network, attention, "fp32")
        outputs.append(network(x, timestep=times, guidance=times, **text, **ids).sample)
    assert torch.equal(outputs[0], outputs[2])
    assert torch.allclose(outputs[0], outputs[1], atol=1e-5)
    with pytest.raises(ConfigError, match="attention=math: this model has PyTorch's fused attention only"):
        set_attention(families.PIPELINES["sd35"]().transformer, "math", "fp32")
    with pytest.raises(ConfigError, match="attention=flash is for transformers, and this model has a UNet"):
        set_attention(diffusers.UNet2DConditionModel(block_out_channels=(32,) * 4), "flash", "fp32")


def test_plain_products_of_scores_that_overflow_are_refused(layout):
    """Autocast undoes the cast to float32 that upcast_attention asks for; the fused kernel needs no cast."""
    from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

    unet = diffusers.UNet2DConditionModel.from_pretrained(layout("sd21"), subfolder="unet")
    with pytest.raises(ConfigError, match="attention=math overflows in fp16 with this model"):
        set_attention(unet, "math", "fp16")
    set_attention(unet, "math", "bf16")
    set_attention(unet, "sdpa", "fp16")

    finite = {}
    for kind in (AttnProcessor, AttnProcessor2_0):
        layer = Attention(query_dim=32, heads=1, dim_head=32, upcast_attention=True, processor=kind())
        torch.nn.init.constant_(layer.to_q.weight, 20.0)
        torch.nn.init.constant_(layer.to_k.weight, 20.0)
        with torch.autocast("cpu", dtype=torch.float16):
            finite[kind] = bool(layer(torch.ones(1, 4, 32)).isfinite().all())
    assert finite == {AttnProcessor: False, AttnProcessor2_0: True}
