import pytest
import torch

from t2i.optim.precision import Precision, resolve_precision


@pytest.fixture
def cpu(monkeypatch):
    """Pretend to run without a GPU, on a CPU with the given features."""

    def cpu(**features):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)

    return cpu


@pytest.mark.parametrize(
    ("features", "chosen"),
    [
        ({"amx_tile": True, "avx512_bf16": False}, "bf16"),
        ({"amx_tile": False, "avx512_bf16": True}, "bf16"),
        ({"amx_tile": False, "avx512_bf16": False, "avx512_f": True}, "fp32"),
        ({}, "fp32"),
    ],
)
def test_auto_is_bf16_where_the_cpu_multiplies_it(cpu, features, chosen):
    cpu(**features)
    assert resolve_precision("auto", "auto").dtype == chosen


def test_pytorch_reports_the_features_of_this_cpu():
    """Under the names that are looked up, on the processors that have them."""
    features = torch.cpu.get_capabilities()
    assert features["architecture"] != "x86_64" or {"amx_tile", "avx512_bf16"} <= features.keys()


def test_slow_bf16_is_allowed_with_a_warning(cpu, caplog):
    cpu(avx512_bf16=False)
    assert resolve_precision("bf16", "auto") == Precision("bf16", "master")
    assert "slower than precision=fp32" in caplog.text
