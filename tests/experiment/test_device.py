"""What follows from the device, and what a setting of the device may be."""

import pytest
import torch
from helpers.runs import compose
from omegaconf import OmegaConf

from t2i.config import ConfigError
from t2i.config.checks import check, check_types
from t2i.experiment.device import hardware, saves_in_background, worker_count
from t2i.experiment.plan import make_plan
from t2i.runs.at_start import AtStart


@pytest.fixture(scope="module")
def composed():
    return compose()


CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_workers_and_background_follow_from_the_device(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert [worker_count("auto", device) for device in (CPU, GPU)] == [0, 4]
    assert worker_count(7, CPU) == 7
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert worker_count("auto", GPU) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert worker_count("auto", GPU) == 0
    assert [saves_in_background("auto", device) for device in (CPU, GPU)] == [False, True]
    assert saves_in_background(True, CPU)
    assert not saves_in_background(False, GPU)


def test_the_gpu_and_its_driver_are_named(monkeypatch):
    assert hardware(CPU) == {"device": "cpu", "gpu": None, "driver": None}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    monkeypatch.setattr("t2i.experiment.device.driver_version", lambda: "550.54.15")
    assert hardware(GPU) == {"device": "cuda", "gpu": "NVIDIA A100-SXM4-80GB", "driver": "550.54.15"}


@pytest.mark.parametrize(("here", "begun"), [(True, "fp32"), (False, "bf16"), (False, "bf16_sr"), (True, None)])
def test_a_run_goes_on_in_its_precision_on_another_type_of_gpu(composed, monkeypatch, here, begun):
    monkeypatch.setattr("t2i.optim.precision._multiplies_bf16", lambda: here)
    assert make_plan(composed, AtStart(begun)).precision.dtype == (begun or "bf16").removesuffix("_sr")
    chosen = OmegaConf.merge(composed, {"precision": {"dtype": "fp32"}})
    assert make_plan(chosen, AtStart(begun)).precision.dtype == "fp32"  # which is refused later


def test_optimizers_that_lay_weights_out_anew_leave_channels_first(composed):
    eight_bit = OmegaConf.merge(composed, {"optimizer": {"_target_": "bitsandbytes.optim.AdamW8bit"}})
    assert not make_plan(eight_bit, AtStart(channels_last=True)).channels_last
    with pytest.raises(ConfigError, match="channels_last=true: bitsandbytes lays weights out"):
        make_plan(OmegaConf.merge(eight_bit, {"channels_last": True}))


@pytest.mark.parametrize(
    "override",
    [
        *("num_workers=auto", "num_workers=3", "channels_last=true", "channels_last=auto", "compile=true"),
        *("save_in_background=false", "process_timeout=0.5"),
    ],
)
def test_these_values_are_understood(composed, override):
    cfg = OmegaConf.merge(composed, OmegaConf.from_dotlist([override]))
    check(cfg, num_processes=1)
    check_types(cfg, composed)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["num_workers=many"], r"num_workers=many must be a whole number, at least 0, or auto"),
        (["num_workers=-1"], r"num_workers=-1 must be a whole number"),
        (["channels_last=1"], r"channels_last=1 must be one of auto, true, false"),
        (["compile=fast"], r"compile=fast must be one of true, false, reduce-overhead, max-autotune"),
        (["save_in_background=often"], r"save_in_background=often must be one of auto, true, false"),
        (["process_timeout=0"], r"process_timeout=0 must be a number of minutes above 0"),
        (["process_timeout=null"], r"process_timeout=null must be a number of minutes above 0"),
        (["deterministic=true", "cudnn_benchmark=true"], r"cudnn_benchmark=true .*deterministic=true forbids"),
        (["compile=reduce-overhead", "batch_size=4", "micro_batch_size=2"], r"use compile=true, or batch_size=2 "),
    ],
)
def test_other_values_are_refused_by_name(composed, overrides, message):
    cfg = OmegaConf.merge(composed, OmegaConf.from_dotlist(overrides))
    with pytest.raises(ConfigError, match=message):
        check(cfg, num_processes=1)
