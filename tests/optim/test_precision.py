import pytest
import torch

from t2i.distributed import processes
from t2i.optim import precision


@pytest.mark.parametrize(("in_hardware", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bf16_where_the_cpu_multiplies_it(monkeypatch, in_hardware, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision, "_cpu_multiplies_bf16", lambda: in_hardware)
    assert precision.resolve_precision("auto", "auto").dtype == chosen


def test_autocast_keeps_no_copies_of_the_weights():
    with processes.start("bf16").autocast():
        assert torch.is_autocast_enabled("cpu")
        assert not torch.is_autocast_cache_enabled()


def test_slow_bf16_is_allowed_with_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision, "_cpu_multiplies_bf16", lambda: False)
    assert precision.resolve_precision("bf16", "auto") == precision.Precision("bf16", "master")
    assert "slower than precision=fp32" in caplog.text
