"""What most people have: twenty images. A comparison of two settings on them ends in a verdict."""

import json

import numpy as np
import pytest
from helpers.runs import compose
from PIL import Image

from t2i.comparison.grouping import compare
from t2i.comparison.results import read_results
from t2i.comparison.wording import sentences
from t2i.config import ConfigError
from t2i.experiment.plan import make_plan
from t2i.experiment.run import run


@pytest.fixture(scope="module")
def twenty(tmp_path_factory):
    """A folder of twenty captioned images."""
    folder = tmp_path_factory.mktemp("twenty")
    for i in range(20):
        pixels = np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(folder / f"{i}.png")
    rows = [{"file_name": f"{i}.png", "text": f"pattern {i}"} for i in range(20)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def train(twenty, small_pipeline, tmp_path):
    """Train a small run on the twenty images in `folder`."""
    common = [
        *("experiment=smoke", "precision=fp32", f"model.path={small_pipeline}", f"cache_dir={tmp_path / 'cache'}"),
        *("dataset=folder", f"dataset.path={twenty}", "dataset.resolution=64", "model=tiny"),
        *("steps=8", "batch_size=4", "micro_batch_size=4", "validate_every=8", "sample_every=0", "save_every=0"),
        *("validation.items=64", "lr_scheduler.num_warmup_steps=1", "log_every=0"),
    ]

    def train(folder, *overrides):
        cfg = compose(*common, *overrides)
        run(cfg, make_plan(cfg), folder, list(overrides), {"dataset": "folder"})
        return json.loads((folder / "run.json").read_text())

    return train


@pytest.mark.slow
@pytest.mark.long
def test_a_sweep_over_folds_ends_in_a_verdict(train, tmp_path):
    for seed in (0, 1, 2):
        for rate in ("1e-6", "3e-3"):
            for fold in range(4):
                own = [f"seed={seed}", f"optimizer.lr={rate}", "validation.folds=4", f"validation.fold={fold}"]
                info = train(tmp_path / "sweep" / "_".join(own), *own)
                assert info["pictures"] == {"train": 15, "validation": 5}
    comparison = compare(read_results([tmp_path / "sweep"]))
    assert not comparison.warnings
    assert [variant.label for variant in comparison.variants] == ["lr=1e-6", "lr=3e-3"]
    (verdict,) = comparison.verdicts(comparison.headline)
    assert (verdict.outcome, verdict.seeds) == ("better", 3)
    assert "4 folds" in sentences(comparison, comparison.headline)[-1][1]


@pytest.mark.slow
def test_a_fifth_is_held_out_and_training_images_are_measured_under_another_name(train, tmp_path, caplog):
    info = train(tmp_path / "held_out")
    assert info["pictures"] == {"train": 16, "validation": 4}
    assert "val/loss" in info["final"]

    caplog.set_level("INFO")
    info = train(tmp_path / "all", "validation.images=train", "dataset.validation_share=null")
    assert info["pictures"] == {"train": 20, "validation": 0}
    assert info["battery"]["on"] == "train"
    assert not [name for name in info["final"] if name.startswith("val/") and "train_loss" not in name]
    assert "val/train_loss (of images that it was trained on)" in caplog.text

    with pytest.raises(ConfigError, match=r"dataset.validation_share=null holds no image out; use a fraction"):
        train(tmp_path / "none", "dataset.validation_share=null")
