import pytest
import torch

from t2i.config import ConfigError
from t2i.models import BUNDLED, locate
from t2i.models.stable_diffusion import load


def test_a_path_is_a_bundled_name_a_folder_or_a_hub_id(small_pipeline):
    assert locate("tiny") == str(BUNDLED["tiny"])
    assert locate(str(small_pipeline)) == str(small_pipeline)
    assert locate("stable-diffusion-v1-5/stable-diffusion-v1-5") == "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere", "~/nowhere"])
def test_a_local_path_without_a_pipeline_is_refused(path):
    with pytest.raises(ConfigError, match=rf"model.path={path} holds no pipeline \(no model_index.json\)"):
        locate(path)


def test_the_shipped_weights_are_at_most_25_megabytes():
    """And no pickle is among them."""
    folder = BUNDLED["tiny"].parent
    assert sum(file.stat().st_size for file in folder.rglob("*.safetensors")) <= 25e6
    assert not [file for pattern in ("*.bin", "*.pt", "*.ckpt", "*.pkl") for file in folder.rglob(pattern)]


def test_without_pretrained_weights_the_seed_decides(small_pipeline):
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights.append(load(str(small_pipeline), pretrained=False).denoiser.conv_in.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_only_the_denoiser_is_trainable(small_pipeline):
    model = load(str(small_pipeline))
    assert all(weight.requires_grad for weight in model.denoiser.parameters())
    assert not any(weight.requires_grad for part in (model.vae, model.text_encoder) for weight in part.parameters())
    assert {weight.dtype for weight in model.vae.parameters()} == {torch.float32}


def test_decoding_what_was_encoded_gives_the_picture_back():
    from t2i.openmoji import draw

    model = load("tiny", pretrained=False)
    pixels = torch.tensor(list(draw("🍎", 64).tobytes())).view(1, 64, 64, 3).permute(0, 3, 1, 2) / 127.5 - 1
    mean, std = model.encode(pixels)
    assert mean.shape == std.shape == (1, 4, 16, 16)
    error = (model.decode(mean) - pixels).square().mean() / 4
    assert -10 * error.log10() > 25  # dB
