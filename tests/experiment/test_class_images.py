"""Class images of a source are drawn by the base, once, each from noise of its own."""

import numpy as np
import pytest
from helpers.runs import compose
from PIL import Image

from t2i.config import ConfigError
from t2i.config.instantiate import build
from t2i.distributed.processes import start
from t2i.experiment.class_images import load_data


@pytest.fixture
def configure(small_pipeline, tmp_path):
    (tmp_path / "mine").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "mine" / f"{i}.png")

    def configure(number, prompt="a dog", path=""):
        sources = (
            f"{{path: {tmp_path}/mine, caption: sks dog}}, {{class_prompt: {prompt}, class_images: {number}{path}}}"
        )
        pipeline = [f"model.path={small_pipeline}", f"cache_dir={tmp_path}/cache", "samples.steps=2"]
        overrides = [f"dataset.sources=[{sources}]", "dataset.validation_share=0", "dataset.resolution=64"]
        return compose("dataset=sources", *overrides, *pipeline)

    return configure


def drawn(tmp_path):
    return {file.name: file.read_bytes() for file in (tmp_path / "cache" / "class_images").rglob("*.png")}


@pytest.mark.slow
def test_class_images_are_drawn_once_and_do_not_depend_on_their_number(configure, tmp_path):
    cfg = configure(2)
    data = load_data(cfg, start("no"))
    assert sorted(data.train.captions) == [("a dog",)] * 2 + [("sks dog",)] * 3
    first = drawn(tmp_path)
    load_data(configure(3), start("no"))
    assert {name: content for name, content in drawn(tmp_path).items() if name in first} == first
    assert len(drawn(tmp_path)) == 3
    assert len(load_data(configure(2), start("no")).train) == 5  # those that are there beyond the number are not used
    load_data(configure(1, "a cat"), start("no"))
    assert len(list((tmp_path / "cache" / "class_images").iterdir())) == 2  # a folder for each prompt
    assert "class_folder" not in str(cfg)


@pytest.mark.slow
def test_images_that_are_there_count(configure, tmp_path):
    (tmp_path / "dogs").mkdir()
    Image.new("RGB", (64, 64), "brown").save(tmp_path / "dogs" / "dog.png")
    data = load_data(configure(3, path=f", path: {tmp_path}/dogs"), start("no"))
    assert sorted(data.train.captions) == [("a dog",)] * 3 + [("sks dog",)] * 3
    assert len(drawn(tmp_path)) == 2


def test_without_a_run_they_are_asked_for(configure):
    with pytest.raises(ConfigError, match=r"dataset.sources.1.class_prompt: its images are made by `t2i encode`"):
        build(configure(2), "dataset")
