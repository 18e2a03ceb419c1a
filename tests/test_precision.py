import diffusers
import pytest
import torch

from t2i import precision
from t2i.config import ConfigError


@pytest.mark.parametrize(("in_hardware", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bf16_where_the_cpu_multiplies_it(monkeypatch, in_hardware, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision, "_cpu_multiplies_bf16", lambda: in_hardware)
    assert precision.resolve_precision("auto") == chosen


def test_slow_bf16_is_allowed_with_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision, "_cpu_multiplies_bf16", lambda: False)
    assert precision.resolve_precision("bf16") == "bf16"
    assert "slower than precision=fp32" in caplog.text


@pytest.mark.parametrize(
    ("attention", "dtype", "on_gpu", "chosen"),
    [
        ("auto", "bf16", False, "math"),
        ("auto", "fp32", False, "sdpa"),
        ("auto", "bf16", True, "sdpa"),
        ("math", "fp32", True, "math"),
    ],
)
def test_attention(monkeypatch, attention, dtype, on_gpu, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    assert precision.resolve_attention(attention, dtype) == chosen


def test_missing_xformers_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(precision.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"attention=xformers: the package is missing; pip install 't2i\[xformers\]'"):
        precision.resolve_attention("xformers", "fp16")


def test_both_implementations_of_attention_agree(small_pipeline):
    unet = diffusers.UNet2DConditionModel.from_pretrained(small_pipeline, subfolder="unet")
    inputs = torch.randn(2, 4, 16, 16), torch.tensor([10, 900]), torch.randn(2, 24, 128)
    outputs = []
    for attention in ("math", "sdpa"):
        precision.set_attention(unet, attention)
        outputs.append(unet(*inputs).sample)
    assert torch.allclose(*outputs, atol=1e-5)
