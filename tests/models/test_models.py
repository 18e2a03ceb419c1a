import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from helpers import layouts
from helpers.runs import compose
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from PIL import Image

from t2i.config import ConfigError
from t2i.config.model_size import BUNDLED
from t2i.experiment.plan import make_plan
from t2i.experiment.run import run
from t2i.models.loading import locate
from t2i.models.stable_diffusion import load
from t2i.runs.folder import Run
from t2i.sampling.images import sample
from t2i.sampling.pipelines import load_pipeline


def test_a_path_is_a_bundled_name_a_folder_or_a_hub_id(small_pipeline):
    assert locate("tiny") == str(BUNDLED["tiny"])
    assert locate(str(small_pipeline)) == str(small_pipeline)
    assert locate("stable-diffusion-v1-5/stable-diffusion-v1-5") == "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere", "~/nowhere"])
def test_a_local_path_without_a_pipeline_is_refused(path):
    with pytest.raises(ConfigError, match=rf"model.path={path} holds no pipeline \(no model_index.json\)"):
        locate(path)


def test_the_shipped_weights_are_at_most_25_megabytes():
    """None of them is a pickle."""
    folder = BUNDLED["tiny"].parent
    assert sum(file.stat().st_size for file in folder.rglob("*.safetensors") if not file.is_symlink()) <= 25e6
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
    assert not any(
        weight.requires_grad
        for part in (model.parts["vae"], model.parts["text_encoder"])
        for weight in part.parameters()
    )
    assert {weight.dtype for weight in model.parts["vae"].parameters()} == {torch.float32}


def test_decoding_what_was_encoded_gives_the_image_back():
    from t2i.data.openmoji import draw

    model = load("tiny", pretrained=False)
    pixels = torch.tensor(list(draw("🍎", 64).tobytes())).view(1, 64, 64, 3).permute(0, 3, 1, 2) / 127.5 - 1
    mean, std = model.encode(pixels)
    assert mean.shape == std.shape == (1, 4, 16, 16)
    error = (model.decode(mean) - pixels).square().mean() / 4
    assert -10 * error.log10() > 25  # dB


@pytest.mark.slow
def test_the_export_does_not_depend_on_what_was_called_before(layout, family, tmp_path):
    def exported(model, name):
        model.pipeline(DDIMScheduler()).save_pretrained(tmp_path / name)
        files = [file for file in (tmp_path / name).rglob("*") if file.is_file()]
        return {file.relative_to(tmp_path / name): file.read_bytes() for file in files}

    model = load_family(family, layout(family))
    before = exported(model, "before")
    model.embed(["a caption", "another"])
    assert exported(model, "padded") == before
    for tokenizer in model.tokenizers.values():
        tokenizer(["one", "two " * 100], padding="longest", truncation=True, max_length=5)
    assert exported(model, "truncated") == before
    tokenizers = [name for name in before if name.name == "tokenizer.json"]
    assert len(tokenizers) == len(model.tokenizers)


@pytest.fixture(params=layouts.STOCK)
def family(request):
    return request.param


def load_family(name, folder):
    return instantiate(compose(f"model={name}", f"model.path={folder}").model)


@pytest.mark.slow
def test_captions_are_embedded_as_the_stock_pipeline_does(layout, family):
    """Also the empty caption, as the pipeline embeds it for guidance: training and sampling must use the same."""
    captions, stock = ["red apple", "woman astronaut", ""], layouts.STOCK[family].from_pretrained(layout(family))
    embedded = load_family(family, layout(family)).embed(captions)
    expected = stock.encode_prompt(
        captions[:2], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
    )
    pairs = [("encoder_hidden_states", expected[0], expected[1])]
    if family == "sdxl":
        pairs.append(("text_embeds", expected[2], expected[3]))
    assert embedded.keys() == {name for name, _, _ in pairs}
    for name, given, empty in pairs:
        assert torch.allclose(embedded[name], torch.cat([given, empty[:1]]), atol=1e-6)


@pytest.mark.slow
def test_denoise_calls_the_unet_as_the_stock_pipeline_does(layout, family):
    """The pipeline's only step predicts with and without the caption."""
    model, calls = load_family(family, layout(family)), []
    pipeline = model.pipeline(DDIMScheduler(steps_offset=1, clip_sample=False))
    forward = pipeline.unet.forward

    def recording(x, t, *args, **kwargs):
        calls.append((x, t, forward(x, t, *args, **kwargs)))
        return calls[-1][-1]

    pipeline.unet.forward = recording
    pipeline("red apple", num_inference_steps=1, output_type="latent")
    (x, t, predictions), text = calls[0], model.embed(["", "red apple"])
    assert torch.allclose(model.denoise(x, t.expand(2), text), predictions[0], atol=1e-5)


def test_sdxl_is_conditioned_on_sizes_and_crops(layout):
    """Without them, an image counts as uncropped; a latent is 4 pixels wide here."""
    model = load_family("sdxl", layout("sdxl"))
    x, t, text = torch.randn(2, 4, 16, 12), torch.tensor([10, 500]), model.embed(["red apple", "cat face"])
    uncropped = torch.tensor([[64, 48, 0, 0, 64, 48]] * 2)
    assert torch.equal(model.denoise(x, t, text), model.denoise(x, t, text | {"time_ids": uncropped}))
    cropped = torch.tensor([[64, 48, 0, 0, 64, 48], [64, 90, 0, 21, 64, 48]])
    change = (model.denoise(x, t, text) - model.denoise(x, t, text | {"time_ids": cropped})).abs().amax((1, 2, 3))
    assert change[0] < 1e-6 < change[1]


def assert_trained(folder, before, name, predicts):
    """Stock Diffusers loads the export, whose weights are new and whose scheduler is the one trained with."""
    pipeline = layouts.STOCK[name].from_pretrained(folder / "model")
    assert pipeline.scheduler.config.prediction_type == predicts
    weight = load_family(name, before).denoiser.conv_in.weight
    assert not torch.equal(pipeline.unet.conv_in.weight, weight)
    image = pipeline("red apple", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (64, 64, 3)
    assert np.isfinite(image).all()
    assert sample(load_pipeline(folder, "raw"), ["red apple"], seed=0, steps=2, guidance_scale=2.0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "predicts"), [("sd21", "v_prediction"), ("sdxl", "epsilon")])
def test_a_family_trains_and_stock_diffusers_samples_from_the_export(train, layout, tmp_path, name, predicts):
    """What it predicts comes from its own scheduler."""
    settings = [f"model={name}", f"model.path={layout(name)}", "steps=3", "validate_every=0", "save_every=0"]
    trained = train(tmp_path / "run", *settings, "sample_every=0")
    assert all(np.isfinite(line["train/loss"]) for line in trained.metrics())
    assert_trained(trained.folder, layout(name), name, predicts)


def test_the_pipeline_of_another_family_is_refused(layout):
    with pytest.raises(InstantiationException) as error:
        load_family("sd15", layout("sdxl"))
    assert "holds a StableDiffusionXLPipeline, not a StableDiffusionPipeline; choose" in str(error.value.__cause__)


def test_variants_are_loaded_and_pickles_are_not(layout, tmp_path):
    folder = tmp_path / "pipeline"
    stock = StableDiffusionPipeline.from_pretrained(layout("sd15"))
    stock.save_pretrained(folder, variant="fp16")
    model = load(str(folder), variant="fp16")
    assert torch.equal(model.denoiser.conv_in.weight, stock.unet.conv_in.weight)
    with pytest.raises(ConfigError, match=r"model.path=.* can't be loaded"):
        load(str(folder))
    stock.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    with pytest.raises(ConfigError, match=r"model.path=.* can't be loaded"):
        load(str(tmp_path / "pickled"))


@pytest.mark.slow
def test_naruto_trains_from_local_copies(layout, tmp_path):
    """It takes a folder of captioned images and a pipeline in the layout of Stable Diffusion 1.5 instead of the Hub."""
    lines, random = [], np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(random.integers(0, 255, (80, 70, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
        lines.append(f'{{"file_name": "{number}.png", "text": "a ninja with {number} shadows"}}\n')
    (tmp_path / "metadata.jsonl").write_text("".join(lines))
    data = ["dataset=naruto", f"dataset.path={tmp_path}", "dataset.resolution=64", "dataset.validation_share=0.3"]
    paths = [f"model.path={layout('sd15')}", f"cache_dir={tmp_path / 'cache'}", "tracker=none"]
    cfg = compose(*data, *paths, "steps=2", "sample_every=0", "validation.items=2", "log_every=1")
    run(cfg, make_plan(cfg), tmp_path / "run", [])
    assert [line["step"] for line in Run(tmp_path / "run", cfg).metrics()] == [0, 1, 2]
    assert_trained(tmp_path / "run", layout("sd15"), "sd15", "epsilon")


@pytest.mark.slow
def test_sdxl_is_conditioned_on_the_crop_of_each_image(train, layout, tmp_path, monkeypatch):
    """In training and in validation."""
    for number, shape in enumerate([(64, 128), (128, 64), (96, 96), (64, 64)] * 3):
        Image.fromarray(np.full((*shape, 3), number, dtype=np.uint8)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a wall")
    conditions = []

    def denoise(self, x, t, text):
        conditions.extend(text["time_ids"].tolist())
        return self.denoiser(x, t, text["encoder_hidden_states"], added_cond_kwargs=text).sample

    monkeypatch.setattr("t2i.models.stable_diffusion_xl.StableDiffusionXL.denoise", denoise)
    data = ["dataset=folder", f"dataset.path={tmp_path}", "dataset.resolution=64", "dataset.validation_share=0.4"]
    settings = ["batch_size=4", "micro_batch_size=4", "steps=3", "sample_every=0", "validation.items=2", "tracker=none"]
    cfg = compose("model=sdxl", f"model.path={layout('sdxl')}", *data, *settings, f"cache_dir={tmp_path / 'cache'}")
    run(cfg, make_plan(cfg), tmp_path / "run", [])
    wide, tall, large, plain = [64, 128, 0, 32], [128, 64, 32, 0], [96, 96, 0, 0], [64, 64, 0, 0]
    assert {tuple(values) for values in conditions} == {(*crop, 64, 64) for crop in (wide, tall, large, plain)}
