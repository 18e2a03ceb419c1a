"""What the tests share: composed configurations, a small pipeline, and runs of it; offline and on one thread.

The process that only deals the tests out to others imports this, too, so that the libraries are imported where they
are used.
"""

import os
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "TOKENIZERS_PARALLELISM": "false"}

import pytest

if TYPE_CHECKING:
    from t2i.runs.folder import Run


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("there is no CUDA device")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def absl_spares_pytest() -> None:
    """absl, which comes with JAX and TensorBoard, keeps the stderr it finds and closes it when Hydra sets up logging.

    Where that is pytest's, every later test of the process fails. The process's own stderr it leaves alone.
    """
    absl = pytest.importorskip("absl.logging")
    absl.get_absl_handler().python_handler.stream = sys.__stderr__


@pytest.fixture(scope="session")
def small_pipeline(tmp_path_factory) -> Path:
    """A pipeline folder in the Diffusers layout: the frozen parts of `tiny` and a denoiser of 0.3 M fresh weights."""
    import diffusers
    import torch

    from t2i.config.model_size import BUNDLED

    folder = tmp_path_factory.mktemp("pipelines") / "small"
    shutil.copytree(BUNDLED["tiny"], folder, ignore=lambda path, names: ["unet"] if "unet" in names else [])
    torch.manual_seed(0)
    blocks = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 2}
    down, up = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    size = {"sample_size": 16, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 128}
    unet = diffusers.UNet2DConditionModel(**size, **blocks, down_block_types=down, up_block_types=up)
    unet.save_pretrained(folder / "unet")
    return folder


@pytest.fixture(scope="session")
def layout(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a small pipeline in the layout of sd15, sd21 or sdxl."""
    from helpers import layouts

    return cache(lambda name: layouts.save(name, tmp_path_factory.mktemp("pipelines") / name))


@pytest.fixture(scope="session")
def small(small_pipeline, tmp_path_factory) -> list[str]:
    """Overrides for a run of seconds: ten steps on 148 images of food and hearts."""
    from helpers.runs import compose

    others = set(compose().dataset.groups) - {"food", "hearts"}
    return [
        "experiment=smoke",
        "precision=fp32",  # the same on every machine
        f"model.path={small_pipeline}",
        f"cache_dir={tmp_path_factory.mktemp('cache')}",
        "dataset.groups.food=1",
        "dataset.groups.hearts=1",
        *(f"dataset.groups.{group}=0" for group in sorted(others)),
    ]


@pytest.fixture(scope="session")
def train(small) -> "Callable[..., Run]":
    """Train a small run in `folder` with more overrides, in this process; returns what it left."""
    from helpers.runs import compose

    from t2i.experiment.plan import make_plan
    from t2i.experiment.run import run
    from t2i.runs.folder import Run

    def train(folder: Path, *overrides: str) -> Run:
        cfg = compose(*small, *overrides)
        run(cfg, make_plan(cfg), folder, list(overrides))
        return Run(folder, cfg)

    return train
