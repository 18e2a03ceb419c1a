"""Masks: what they hide has no gradient, what they show weighs the same however small it is."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.encoders import Encoders
from helpers.image_folders import from_folder, from_hub
from PIL import Image

from t2i.config import ConfigError
from t2i.data.latent_cache import encode
from t2i.data.preparation import ImageSettings, Preparation
from t2i.diffusion.losses import MSE, MinSNR
from t2i.diffusion.process import Diffusion
from t2i.diffusion.residuals import Huber, SmoothL1, Squared
from t2i.distributed.processes import start
from t2i.evaluation.battery import make_battery
from t2i.evaluation.noise_levels import choose_levels

WHOLE = {"caption": "a dog", "validation_share": 0, "resolution": 64}
T = 20


def write(folder, name, box, size=(64, 64), mask="{}_mask.png"):
    """An image of noise, and a mask that is white in a box."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(sum(name.encode()))
    Image.fromarray(random.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(folder / f"{name}.png")
    shown = Image.new("L", size)
    shown.paste(255, box)
    file = folder / mask.format(name)
    file.parent.mkdir(exist_ok=True)
    shown.save(file)
    return folder


def weights(data, tmp_path):
    """What the errors of the training images count, [N, 1, 8, 8]."""
    encoded = encode(data.train, Encoders(), tmp_path / "cache")
    return encoded.weight(list(range(len(data.train))))


@pytest.mark.parametrize("name", ["{}_mask.png", "{}-masklabel.png", "{}-mask.webp", "{}.mask.png"])
def test_a_mask_next_to_its_image(tmp_path, name):
    """Under the names that people give masks; it is no image of its own."""
    folder = write(tmp_path / "data", "a", (0, 0, 32, 64), mask=name)
    data = from_folder(folder, **WHOLE, masks="beside")
    assert len(data.train) == 1
    shown = weights(data, tmp_path)[0, 0]
    assert torch.equal(shown, torch.tensor([[2.0] * 4 + [0.0] * 4] * 8))


def test_masks_in_a_folder_of_their_own_and_in_the_alpha_channel(tmp_path):
    plain = write(tmp_path / "data", "a", (0, 0, 32, 64), mask="masks/{}.jpg")
    inside = from_folder(plain, **WHOLE, masks=str(plain / "masks"))
    shown = [weights(inside, tmp_path)]
    (plain / "masks").rename(tmp_path / "masks")
    elsewhere = from_folder(plain, **WHOLE, masks=str(tmp_path / "masks"))
    image = Image.open(plain / "a.png").convert("RGBA")
    image.paste((0, 0, 0, 0), (32, 0, 64, 64))
    (tmp_path / "alpha").mkdir()
    image.save(tmp_path / "alpha" / "a.png")
    alpha = from_folder(tmp_path / "alpha", **WHOLE, masks="alpha")
    shown += [weights(elsewhere, tmp_path), weights(alpha, tmp_path)]
    for weight in shown:
        assert weight.shape == (1, 1, 8, 8)
        assert torch.allclose(weight[..., :3], torch.tensor(2.0), atol=0.02)
        assert torch.allclose(weight[..., 5:], torch.tensor(0.0), atol=0.02)


def test_an_image_without_a_mask_counts_as_a_whole(tmp_path):
    folder = write(tmp_path / "data", "a", (0, 0, 8, 8))
    Image.new("RGB", (64, 64), "red").save(folder / "b.png")
    data = from_folder(folder, **WHOLE, masks="beside")
    assert weights(data, tmp_path).sum((1, 2, 3)).tolist() == [64, 64]
    data = from_folder(folder, **WHOLE, masks="beside", mask_normalize=False)
    assert sorted(weights(data, tmp_path).sum((1, 2, 3)).tolist()) == [1, 64]


def test_a_mask_is_cut_and_mirrored_as_its_image_is(tmp_path):
    """An image that is white where its mask is: at every view, both show the same."""
    shown = Image.new("L", (96, 64))
    shown.paste(255, (10, 20, 70, 40))
    folder = tmp_path / "data"
    folder.mkdir()
    shown.convert("RGB").save(folder / "a.png")
    shown.resize((48, 32), Image.Resampling.BOX).save(folder / "a_mask.png")  # a mask may be smaller
    settings = {**WHOLE, "crop": "random", "crop_variants": 3, "flip": True, "interpolation": "box"}
    train = from_folder(folder, **settings, masks="beside").train
    assert train.views == 6
    for view in range(train.views):
        assert np.abs(train.pixels(0, view)[..., 0].astype(int) - train.masks.pixels(0, view)).mean() < 3


@pytest.mark.parametrize("error", [Squared(), Huber(c=0.1, schedule="snr"), SmoothL1(c=0.1, schedule="snr")])
def test_what_a_mask_hides_has_no_gradient(error):
    angle = torch.linspace(0.1, 1.5, T).double()
    diffusion = Diffusion(angle.cos(), angle.sin(), torch.arange(T), "epsilon")
    x0, noise, prediction = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    prediction.requires_grad_()
    weight = torch.zeros(2, 1, 8, 8)
    weight[:, :, 2:5, 1:3] = 64 / 6
    loss = MinSNR(snr_gamma=5.0, normalize=False, error=error)
    loss.prepare(diffusion, np.full(T, 1 / T))
    noised = diffusion.add_noise(x0, noise, torch.tensor([3, 15]))
    loss(prediction, noised, weight).sum().backward()
    shown = (weight > 0).expand_as(prediction)
    assert (prediction.grad[~shown] == 0).all()
    assert (prediction.grad[shown] != 0).all()


def test_small_and_large_masks_take_the_same_step(tmp_path):
    """Where each element has the same gradient, a convolution over the image has the same whatever the mask's size.

    Without `mask_normalize`, it is smaller in proportion to the mask.
    """
    folder = write(tmp_path / "data", "small", (0, 0, 16, 16))
    write(folder, "large", (0, 0, 64, 32))
    angle = torch.linspace(0.1, 1.5, T).double()
    diffusion = Diffusion(angle.cos(), angle.sin(), torch.arange(T), "epsilon")
    sizes = {}
    for normalize in (True, False):
        weight = weights(from_folder(folder, **WHOLE, masks="beside", mask_normalize=normalize), tmp_path)
        scale = torch.ones((), requires_grad=True)
        noised = diffusion.add_noise(torch.zeros(2, 4, 8, 8), torch.full((2, 4, 8, 8), 0.5), torch.tensor([5, 5]))
        losses = MSE(normalize=False, error=Squared())(scale * noised.x, noised, weight)
        sizes[normalize] = sorted(float(torch.autograd.grad(one, scale, retain_graph=True)[0].abs()) for one in losses)
    assert sizes[True][0] == pytest.approx(sizes[True][1], rel=1e-6)
    assert sizes[False][1] / sizes[False][0] == pytest.approx((64 * 32) / (16 * 16), rel=1e-6)


def test_what_the_background_counts(tmp_path):
    folder = write(tmp_path / "data", "a", (0, 0, 32, 64))
    shown = weights(from_folder(folder, **WHOLE, masks="beside", mask_background=0.25), tmp_path)[0, 0]
    assert torch.allclose(shown, torch.tensor([[1.6] * 4 + [0.4] * 4] * 8))
    with pytest.raises(ConfigError, match=r"dataset.mask_background=1.0 must be at least 0 and below 1"):
        from_folder(folder, **WHOLE, masks="beside", mask_background=1.0)


def test_the_battery_measures_what_masks_show(tmp_path):
    """The error of an image is its mean over the mask: errors elsewhere do not count."""
    folder = write(tmp_path / "data", "a", (0, 0, 32, 64))
    data = from_folder(folder, **WHOLE, masks="beside")
    angle = torch.linspace(0.1, 1.5, T).double()
    diffusion = Diffusion(angle.cos(), angle.sin(), torch.arange(T), "epsilon")
    encoded = encode(data.train, Encoders(), tmp_path / "cache")
    identity = {"images": data.train.fingerprint, "autoencoder": "none"}
    levels = choose_levels(diffusion, 4, None)
    masked = make_battery(encoded, data.train.weights, diffusion, levels, 0, 8, identity)
    model = SimpleNamespace(denoise=lambda x, t, text: torch.zeros_like(x))
    noise = masked.noise(np.arange(4))  # what the error of zeros is
    expected = noise[..., :4].square().mean((1, 2, 3))
    assert np.allclose(masked.errors(model, diffusion, start("no"))[0], expected)
    unmasked = from_folder(folder, **WHOLE, on_error="skip")
    assert data.train.fingerprint != unmasked.train.fingerprint


def test_masks_that_hide_nothing_or_everything_are_told_of(tmp_path, caplog):
    folder = write(tmp_path / "data", "a", (0, 0, 64, 64))
    weights(from_folder(folder, **WHOLE, masks="beside"), tmp_path)
    assert "the masks hide nothing" in caplog.text
    caplog.clear()
    write(folder, "b", (0, 0, 0, 0))
    assert weights(from_folder(folder, **WHOLE, masks="beside"), tmp_path).sum((1, 2, 3)).tolist().count(0) == 1
    assert "the masks of 1 of 2 views are black" in caplog.text


def test_a_mask_of_another_shape_and_masks_that_are_missing(tmp_path):
    folder = write(tmp_path / "data", "a", (0, 0, 8, 8))
    Image.new("L", (64, 40)).save(folder / "a_mask.png")
    with pytest.raises(ConfigError, match=r"a.png is 64×64 pixels, and its mask 64×40: the shapes differ"):
        from_folder(folder, **WHOLE, masks="beside")
    (folder / "a_mask.png").unlink()
    with pytest.raises(
        ConfigError, match=r"dataset.masks=beside: no image has a mask there, such as NAME-masklabel.png"
    ):
        from_folder(folder, **WHOLE, masks="beside")
    with pytest.raises(ConfigError, match=r"dataset.masks=nowhere is not a folder; use a folder of masks, or alpha or"):
        from_folder(folder, **WHOLE, masks="nowhere")
    with pytest.raises(ConfigError, match=r"dataset.masks=beside is for dataset=folder; use alpha or null"):
        from_hub(folder, **WHOLE, masks="beside")


def test_what_looks_like_a_mask_is_asked_about(tmp_path):
    """One caption for all images would train on the masks themselves."""
    folder = write(tmp_path / "data", "a", (0, 0, 8, 8))
    message = r"a_mask.png looks like the mask of a.png; use dataset.masks=beside, or rename it"
    with pytest.raises(ConfigError, match=message):
        from_folder(folder, **WHOLE)
    (folder / "a.txt").write_text("a dog")
    with pytest.raises(ConfigError, match=message):
        from_folder(folder, **WHOLE | {"caption": None})


def test_a_loss_weight_of_each_image(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in "ab":
        Image.new("RGB", (16, 16), {"a": "red", "b": "blue"}[name]).save(folder / f"{name}.png")
    (folder / "metadata.csv").write_text("file_name,text,quality\na.png,a red one,0.5\nb.png,a blue one,2\n")
    settings = {"validation_share": 0, "loss_weight_column": "quality"}
    data = from_folder(folder, **settings)
    by_caption = dict(zip(data.train.captions, weights(data, tmp_path).flatten().tolist(), strict=True))
    assert by_caption == {("a red one",): 0.5, ("a blue one",): 2.0}
    with pytest.raises(
        ConfigError, match=r"dataset.loss_weight_column=nope is not in .*; its columns are file_name, te"
    ):
        from_folder(folder, **settings | {"loss_weight_column": "nope"})
    (folder / "metadata.csv").write_text("file_name,text,quality\na.png,a red one,good\nb.png,a blue one,-1\n")
    with pytest.raises(ConfigError, match=r"has a loss weight that is no number of at least 0: 'good' \(2 of 2 items"):
        from_folder(folder, **settings)


def test_preparation_needs_no_mask():
    settings = ImageSettings(
        resolution=16, crop="center", crop_variants=1, flip=False, interpolation="box", buckets=False, bucket_step=64
    )
    assert Preparation(settings).mask(None, type("Facts", (), {"width": 20, "height": 16})(), 0).min() == 255
