"""Feature networks: the same features as Transformers gives, kept by content, and refused in one line."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from helpers import networks
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, Dinov2Model, SiglipModel, ViTModel

from t2i.config import ConfigError
from t2i.evaluation.image_metrics.features import features
from t2i.evaluation.image_metrics.network import FeatureNetwork

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The folder of a small network of a kind."""
    folders = {}

    def of(kind: str) -> str:
        if kind not in folders:
            folders[kind] = networks.save(kind, tmp_path_factory.mktemp("networks") / kind)
        return str(folders[kind])

    return of


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in ((40, 40), (48, 36), (32, 32))
    ]


def named(model: str, **settings) -> FeatureNetwork:
    return FeatureNetwork(setting="metric.clip_score.model", model=model, **settings)


def test_the_features_of_dinov2_are_its_pooled_output(network, images):
    folder = network("dinov2")
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")(images, return_tensors="pt")
    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(folder).eval()(**pixels).pooler_output.numpy()
    assert np.allclose(features(named(folder), images, CPU, None).values, expected, atol=1e-5)


def test_the_features_of_dino_are_its_class_token(network, images):
    folder = network("dino")
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")(images, return_tensors="pt")
    with torch.no_grad():
        expected = ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()(**pixels).last_hidden_state[:, 0]
    assert np.allclose(features(named(folder), images, CPU, None).values, expected, atol=1e-5)


def test_the_features_of_siglip_are_its_pooled_ones(network, images):
    folder = network("siglip")
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")(images, return_tensors="pt")
    with torch.no_grad():
        expected = SiglipModel.from_pretrained(folder).eval().get_image_features(**pixels).pooler_output
    assert np.allclose(features(named(folder), images, CPU, None).values, expected, atol=1e-5)


def test_a_whole_image_is_shrunk_where_others_are_cropped(network, images):
    """As the papers of CMMD and FD-DINOv2 do."""
    whole = named(network("dinov2"), whole=True)
    squeezed = [image.resize((28, 28), Image.Resampling.BICUBIC) for image in images]
    assert np.allclose(
        features(whole, images, CPU, None).values, features(whole, squeezed, CPU, None).values, atol=1e-5
    )
    cropped = features(named(network("dinov2")), images, CPU, None).values
    assert not np.allclose(features(whole, images, CPU, None).values, cropped, atol=1e-2)


def test_the_batch_does_not_matter_nor_does_the_cache(network, images, tmp_path):
    model = network("clip")
    alone = features(named(model, batch_size=1), images, CPU, None)
    for _ in range(2):
        kept = features(named(model, batch_size=2), [*images, images[0]], CPU, str(tmp_path))
        assert np.allclose(kept.values, alone.values[[0, 1, 2, 0]], atol=1e-6)


def test_features_are_computed_once(network, images, tmp_path, monkeypatch):
    """The same pixels in another order or file format are the same image; those of another network are not."""
    first = features(named(network("clip")), images, CPU, str(tmp_path))
    images[0].save(tmp_path / "0.png")
    again = [images[2], Image.open(tmp_path / "0.png")]
    moved = shutil.copytree(network("clip"), tmp_path / "elsewhere")
    monkeypatch.setattr(FeatureNetwork, "load", lambda self, device: pytest.fail("loaded"))
    assert np.array_equal(features(named(str(moved)), again, CPU, str(tmp_path)).values, first.values[[2, 0]])
    with pytest.raises(pytest.fail.Exception):
        features(named(network("siglip")), again, CPU, str(tmp_path))
    with pytest.raises(pytest.fail.Exception):
        features(named(network("clip"), whole=True), again, CPU, str(tmp_path))


def test_damaged_features_are_computed_again(network, images, tmp_path, caplog):
    first = features(named(network("clip")), images, CPU, str(tmp_path))
    (file,) = tmp_path.glob("features/*/*.safetensors")
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        again = features(named(network("clip")), images, CPU, str(tmp_path))
    assert np.array_equal(again.values, first.values)
    assert "its checksum differs" in caplog.text


def test_the_content_of_other_images_is_another(network, images):
    names = [
        features(named(network("clip")), chosen, CPU, None).content for chosen in (images, images[::-1], images[:2])
    ]
    assert len(set(names)) == 3


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("openai/clip-nobody-has", "hf download openai/clip-nobody-has"),
        ("./nowhere", "neither a folder with a config.json"),
        ("~nobody-at-all/x", "give the folder without ~"),
    ],
)
def test_a_missing_network_is_one_line_with_the_remedy(model, words):
    with pytest.raises(ConfigError, match=r"^metric.clip_score.model=") as caught:
        named(model).check()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def change(folder, name, **settings):
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | settings))


def without(folder, name):
    (folder / name).unlink()


def as_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    without(folder, "model.safetensors")


def without_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: change(f, "config.json", auto_map={"AutoModel": "evil.Model"}), "leads to code"),
        (lambda f: change(f, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]}), "leads to code"),
        (lambda f: change(f, "preprocessor_config.json", auto_map={"AutoImageProcessor": "evil.P"}), "leads to code"),
        (lambda f: change(f, "config.json", _attn_implementation="somebody/kernel"), "leads to code"),
        (lambda f: change(f, "config.json", model_type="bert"), "is of type bert; choose one of clip, siglip"),
        (lambda f: change(f, "config.json", model_type=["clip"]), "choose one of clip, siglip"),
        (as_pickle, "pickle alone (pytorch_model.bin), which t2i does not read"),
        (lambda f: without(f, "preprocessor_config.json"), "has no preprocessor_config.json"),
        (lambda f: [without(f, name) for name in ("tokenizer.json", "vocab.json", "merges.txt")], "has no tokenizer"),
        (lambda f: (f / "config.json").write_text("[]"), "holds list"),
    ],
)
def test_what_is_no_network_is_refused_by_its_files(network, tmp_path, damage, words):
    folder = shutil.copytree(network("clip"), tmp_path / "clip")
    damage(folder)
    with pytest.raises(ConfigError) as caught:
        named(str(folder), reads_text=True).check()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without_a_weight, "lacks 1 of the weights of a CLIPModel, such as visual_projection.weight"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 100), "can't be loaded"),
    ],
)
def test_damaged_weights_are_named(network, tmp_path, damage, words):
    folder = shutil.copytree(network("clip"), tmp_path / "clip")
    damage(folder)
    with pytest.raises(ConfigError, match=r"metric.clip_score.model=") as caught:
        named(str(folder)).load(CPU)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_dino_reads_no_prompts(network):
    named(network("dinov2")).check()
    with pytest.raises(ConfigError, match="is of type dinov2; choose one of clip, siglip"):
        named(network("dinov2"), reads_text=True).check()


def test_a_batch_of_no_image_is_refused(network):
    with pytest.raises(ConfigError, match=r"metric.clip_score.batch_size=0 must be at least 1"):
        named(network("clip"), batch_size=0).check()
