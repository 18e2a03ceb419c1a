"""Resolution and settings follow from the model."""

import json
import logging

import diffusers
import pytest
from helpers.runs import compose

from t2i.config import CONF, ConfigError
from t2i.config.model_size import BUNDLED, check_model_is_named, check_resolution, model_size, options
from t2i.config.moved_targets import ADDED


def pipeline(folder, kind="StableDiffusionPipeline", part="unet", sample_size=64, channels=4, **more):
    """The settings of a pipeline, which has no weights."""
    vae = {"block_out_channels": [8] * channels}
    files = {"model_index": {"_class_name": kind}, f"{part}/config": {"sample_size": sample_size, **more}}
    for name, content in (files | {"vae/config": vae}).items():
        file = folder / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("option", "dataset", "size"),
    [("tiny", "folder", 64), ("tiny_flow", "hub", 64), ("sd15", "webdataset", 512), ("sd21", "stream", 768),
     ("sdxl", "folder", 1024), ("flux1", "hub", 1024)],
)  # fmt: skip
def test_own_images_are_trained_at_the_size_that_the_model_was_made_for(option, dataset, size):
    assert compose(f"dataset={dataset}", f"model={option}").dataset.resolution == size


def test_another_resolution_can_be_typed():
    assert compose("dataset=folder", "dataset.resolution=96").dataset.resolution == 96


def test_the_size_is_read_from_the_files(tmp_path):
    assert model_size(pipeline(tmp_path / "a", sample_size=96)) == 768
    assert model_size(pipeline(tmp_path / "b", sample_size=[128, 128])) == 1024
    assert model_size(pipeline(tmp_path / "c", "SanaPipeline", "transformer", 32, channels=6)) == 1024
    assert model_size(pipeline(tmp_path / "d", "FluxPipeline", "transformer", None)) == 1024
    (tmp_path / "run").mkdir()
    pipeline(tmp_path / "run" / "model", sample_size=96)
    assert model_size(tmp_path / "run") == 768
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "config.yaml").write_text(f"model:\n  _target_: x\n  path: {tmp_path / 'a'}\nsteps: 3\n")
    assert model_size(tmp_path / "lora") == 768
    for nothing in (tmp_path / "nowhere", "nobody/nothing", "~nobody/x", None, ""):
        assert model_size(nothing) == 512


def test_a_resolution_of_another_model_is_said_with_what_it_costs(caplog):
    for resolution, said in ((64, None), (128, "about 4 times the time and memory"), (32, "about 25.0% of the time")):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            check_resolution(compose("dataset=folder", f"dataset.resolution={resolution}"))
        messages = [record.getMessage() for record in caplog.records]
        assert len(messages) == (said is not None)
        assert said is None or said in messages[0]


@pytest.mark.parametrize("resolution", [3, 520, 4096])
def test_an_absurd_resolution_is_refused(resolution):
    with pytest.raises(
        ConfigError, match=rf"dataset\.resolution={resolution}: tiny was made for 64 × 64 pixels, .* 4 to 512"
    ):
        check_resolution(compose("dataset=folder", f"dataset.resolution={resolution}"))


def test_a_resolution_that_cuts_a_patch_is_refused_with_its_neighbours():
    with pytest.raises(ConfigError, match=r"dataset\.resolution=60 is not a multiple of the 8 pixels .*; try 56 or 64"):
        check_resolution(compose("dataset=folder", "model=tiny_flow", "dataset.resolution=60"))


@pytest.mark.parametrize(
    ("kind", "sample_size", "option"),
    [
        ("StableDiffusionPipeline", 64, "sd15"),
        ("StableDiffusionPipeline", 96, "sd21"),
        ("StableDiffusionXLPipeline", 128, "sdxl"),
    ],
)
def test_a_pipeline_without_an_option_of_model_is_asked_about(kind, sample_size, option, tmp_path):
    path = f"model.path={pipeline(tmp_path, kind, sample_size=sample_size)}"
    with pytest.raises(
        ConfigError, match=rf"is a {kind} for .*which settings.*lr 0.001, batch 32, 200 steps.*model={option}"
    ):
        check_model_is_named(compose("dataset=folder", path), "tiny", ["dataset=folder", path])
    check_model_is_named(compose("dataset=folder", path, "model=tiny"), "tiny", ["dataset=folder", "model=tiny", path])
    check_model_is_named(compose("dataset=folder", path, f"model={option}"), option, [f"model={option}", path])


def test_the_tiny_model_on_own_images_is_said(caplog):
    check_model_is_named(compose("dataset=folder", "dataset.path=pics"), "tiny", ["dataset=folder"])
    assert "without model=, the tiny model is trained, which knows emoji" in caplog.text
    caplog.clear()
    check_model_is_named(compose(), "tiny", [])
    assert not caplog.text


def test_of_every_model_the_size_is_known_before_it_is_fetched():
    """The file of each option says it, so that a new family has to be entered nowhere else."""
    for file in (CONF / "model").glob("*.yaml"):
        composed, option = compose(f"model={file.stem}", "dataset=folder"), options()[file.stem]
        assert option.path == composed.model.path
        assert option.size == composed.made_for.size == composed.dataset.resolution
        assert list(option.pipelines) == composed.made_for.pipelines
        assert all(hasattr(diffusers, name) for name in option.pipelines)
        assert option.path in BUNDLED or model_size(option.path) == option.size


def test_of_a_model_that_nothing_is_known_of_the_size_is_that_of_its_kind():
    assert compose("model=sdxl", "model.path=me/finetuned", "dataset=folder").dataset.resolution == 1024
    assert compose("model=sd15", "model.path=me/finetuned", "dataset=folder").dataset.resolution == 512


def test_runs_that_began_at_512_pixels_go_on_so():
    assert ADDED["dataset.resolution"] == 512


@pytest.mark.parametrize(
    ("batch_size", "processes", "micro"), [(32, 1, 32), (64, 1, 32), (8, 1, 8), (48, 1, 24), (32, 4, 8)]
)
def test_a_smaller_batch_makes_smaller_micro_batches(batch_size, processes, micro, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    assert compose(f"batch_size={batch_size}").micro_batch_size == micro
    assert compose(f"batch_size={batch_size}", "micro_batch_size=2").micro_batch_size == 2
