"""Metrics of images and prompts: Transformers' logits, and what the packages of others say."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import networks
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, CLIPProcessor, SiglipModel

from t2i.config import ConfigError
from t2i.evaluation.image_metrics.clip_score import ClipScore, PickScore
from t2i.evaluation.image_metrics.metric import Judged
from t2i.evaluation.image_metrics.preferences import HPSv2, ImageReward

CPU = torch.device("cpu")
PROMPTS = ["red apple", "a cat that sleeps"]


@pytest.fixture(scope="module")
def judged():
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (40, 44, 3), dtype=np.uint8)) for _ in range(6)]
    return Judged(prompts=PROMPTS, images=images)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return networks.save("clip", tmp_path_factory.mktemp("networks") / "clip")


def logits_of_clip(folder, judged):
    """[P·S, P], with the processor that Transformers has for it."""
    processor = CLIPProcessor(
        AutoImageProcessor.from_pretrained(folder, backend="pil"), AutoTokenizer.from_pretrained(folder)
    )
    inputs = processor(text=judged.prompts, images=list(judged.images), padding=True, return_tensors="pt")
    model = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**inputs).logits_per_image.numpy(), model.logit_scale.exp().item()


def test_the_clip_score_is_transformers_logit_without_its_scale(judged, clip, tmp_path):
    logits, scale = logits_of_clip(clip, judged)
    scores = ClipScore(str(clip), None, 4)(judged, CPU, str(tmp_path))
    expected = logits.reshape(2, 3, 2)[[0, 1], :, [0, 1]] / scale
    assert scores.values.shape == (2, 3)
    assert np.allclose(scores.values, expected, atol=1e-4)
    assert scores.value == pytest.approx(expected.mean(), abs=1e-4)
    assert not scores.notes


def test_pick_score_is_the_logit(judged, clip):
    logits, _ = logits_of_clip(clip, judged)
    scores = PickScore(str(clip), None, None, 4)(judged, CPU, None)
    assert np.allclose(scores.values, logits.reshape(2, 3, 2)[[0, 1], :, [0, 1]], atol=1e-4)


def test_pick_score_may_have_its_processor_elsewhere(judged, clip, tmp_path):
    expected = PickScore(str(clip), None, None, 4)(judged, CPU, None).values
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "model" / name).write_bytes((clip / name).read_bytes())
    with pytest.raises(ConfigError, match=r"has no preprocessor_config\.json"):
        PickScore(str(tmp_path / "model"), None, None, 4).check()
    apart = PickScore(str(tmp_path / "model"), str(clip), None, 4)
    apart.check()
    assert np.allclose(apart(judged, CPU, None).values, expected)
    with pytest.raises(ConfigError, match=r"metric.pick_score.processor=\./nowhere is neither a folder"):
        PickScore(str(clip), "./nowhere", None, 4).check()


def test_the_clip_score_of_siglip_is_its_logit_without_scale_and_bias(judged, tmp_path):
    folder = networks.save("siglip", tmp_path / "siglip")
    model, tokenizer = SiglipModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")(list(judged.images), return_tensors="pt")
    tokens = tokenizer(judged.prompts, padding="max_length", max_length=16, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model(input_ids=tokens, **pixels).logits_per_image
        cosines = ((logits - model.logit_bias) / model.logit_scale.exp()).numpy()
    scores = ClipScore(str(folder), None, 4)(judged, CPU, None)
    assert np.allclose(scores.values, cosines.reshape(2, 3, 2)[[0, 1], :, [0, 1]], atol=1e-4)


def test_prompts_that_are_cut_are_counted(judged, clip):
    long = Judged(prompts=["a cat " * 20, "cat"], images=judged.images)
    (note,) = ClipScore(str(clip), None, 4)(long, CPU, None).notes
    assert note.startswith("1 of 2 prompts are longer than the 20 tokens")


@pytest.mark.slow
def test_scores_of_other_files_are_not_comparable(judged, clip, tmp_path):
    one = ClipScore(str(clip), None, 4)(judged, CPU, None).identity
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in clip.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    assert ClipScore(str(moved), None, 2)(judged, CPU, str(tmp_path)).identity == one
    assert ClipScore("tiny", None, 4)(judged, CPU, None).identity != one


def brightness(prompt, image):
    return float(np.asarray(image).mean()) + len(prompt)


@pytest.fixture
def image_reward(monkeypatch, tmp_path):
    """A stand-in with the signatures of image-reward 1.5."""

    def load(name="ImageReward-v1.0", device="cpu", download_root=None, med_config=None):
        print("load checkpoint from", name)
        assert name == str(tmp_path / "ImageReward.pt")
        assert med_config == str(tmp_path / "med_config.json")
        return SimpleNamespace(score=brightness)

    module = ModuleType("ImageReward")
    module.load, module.__spec__ = load, SimpleNamespace()
    monkeypatch.setitem(sys.modules, "ImageReward", module)


@pytest.mark.usefixtures("image_reward")
def test_image_reward_scores_each_image_with_its_prompt(judged, tmp_path, capsys):
    metric = ImageReward(str(tmp_path))
    with pytest.raises(ConfigError, match=r"has no ImageReward.pt; `hf download THUDM/ImageReward"):
        metric.check()
    (tmp_path / "ImageReward.pt").write_bytes(b"weights")
    (tmp_path / "med_config.json").write_text("{}")
    metric.check()
    scores = metric(judged, CPU, None)
    expected = [brightness(PROMPTS[i // 3], image) for i, image in enumerate(judged.images)]
    assert np.allclose(scores.values.ravel(), expected)
    assert not capsys.readouterr().out


@pytest.fixture
def hpsv2(monkeypatch):
    """A stand-in with the signature of hpsv2 1.2."""

    def score(imgs_path, prompt, hps_version="v2.0"):
        assert hps_version == "v2.1"
        return [np.float32(brightness(prompt, image)) for image in imgs_path]

    module = ModuleType("hpsv2")
    module.score, module.__spec__ = score, SimpleNamespace()
    monkeypatch.setitem(sys.modules, "hpsv2", module)


@pytest.mark.usefixtures("hpsv2")
def test_hpsv2_scores_each_image_with_its_prompt(judged, tmp_path, monkeypatch):
    metric = HPSv2("v2.1")
    with pytest.raises(ConfigError, match=r"`hf download laion/CLIP-ViT-H-14-laion2B-s32B-b79K open_clip"):
        metric.check()
    file = tmp_path / "weights"
    file.write_bytes(b"weights")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, name: str(file))
    metric.check()
    expected = [brightness(PROMPTS[i // 3], image) for i, image in enumerate(judged.images)]
    assert np.allclose(metric(judged, CPU, None).values.ravel(), expected)
    with pytest.raises(ConfigError, match=r"metric.hpsv2.version=v3 must be one of v2.0, v2.1"):
        HPSv2("v3").check()


@pytest.mark.parametrize(("metric", "name"), [(ImageReward("."), "image-reward"), (HPSv2("v2.1"), "hpsv2")])
def test_a_missing_package_is_named_with_its_command(metric, name):
    with pytest.raises(ConfigError, match=f"pip install {name}"):
        metric.check()
