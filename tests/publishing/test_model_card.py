import numpy as np
import pytest
import yaml
from helpers.runs import compose
from omegaconf import OmegaConf
from PIL import Image

from t2i.publishing.card_code import use_pipeline
from t2i.publishing.model_card import command, draw_curves, metadata, write_card


def test_the_metadata_name_what_is_on_the_hub():
    """They name a base model and data that are on the Hub, and nothing that is only on this machine."""
    published = yaml.safe_load(metadata(compose("experiment=naruto_lora"), "creativeml-openrail-m", is_adapter=True))
    assert published == {
        "license": "creativeml-openrail-m",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "t2i", "lora"],
        "base_model": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "base_model_relation": "adapter",
        "datasets": ["lambdalabs/naruto-blip-captions"],
    }
    local = yaml.safe_load(metadata(compose("dataset=naruto", "model.path=./here", "dataset.path=/a/b"), None, False))
    assert local.keys() == {"library_name", "pipeline_tag", "tags"}


def test_settings_that_do_not_change_the_result_are_not_in_the_command():
    overrides = ["loss=minsnr", "samples.prompts=[red apple]", "hub.push=true", "run=x", "+tracker.mode=offline"]
    assert command(overrides) == "python -m t2i.train loss=minsnr 'samples.prompts=[red apple]'"


@pytest.mark.slow
def test_a_card_says_what_was_done(train, tmp_path):
    overrides = ["loss.snr_gamma=1", "seed=7", "steps=1", "hub.repo=mine"]
    run = train(tmp_path / "run", *overrides)
    (run.folder / ".hydra").mkdir()
    OmegaConf.save(OmegaConf.create(overrides), run.folder / ".hydra" / "overrides.yaml")
    write_card(run.folder, "me/mine", "mit")
    card = (run.folder / "model" / "README.md").read_text()
    for part in (
        "# mine",
        f"| base model | {run.config['model']['path']} |",
        "| data | openmoji, 64 pixels: 129 images, 6 held out |",
        "| noise schedule | DDIMScheduler; predicts v_prediction |",
        "| loss | MinSNR (snr_gamma 1, normalize False) |",
        "| seed | 7 |",
        f"| val/ema/loss | {run.info['final']['val/ema/loss']:.5f} |",
        "python -m t2i.train loss.snr_gamma=1 seed=7 steps=1\n",
        use_pipeline("me/mine") + '\nimage = pipeline("a prompt").images[0]\n',
    ):
        assert part in card
    for image in ("curves.png", "samples.png"):
        assert f"]({image})" in card
        with Image.open(run.folder / "model" / image) as image:
            assert len(np.unique(np.asarray(image.convert("L")))) > 10


def test_nothing_is_drawn_where_nothing_was_measured(tmp_path):
    assert not draw_curves([{"step": 1, "train/lr": 1.0}], tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
    assert draw_curves([{"step": 1, "train/loss": 1.0}], tmp_path / "curves.png")
