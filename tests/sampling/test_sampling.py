import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from omegaconf import OmegaConf
from PIL import Image

from t2i.cli import failing
from t2i.config import ConfigError
from t2i.sample import main
from t2i.sampling.images import sample
from t2i.sampling.pipelines import load_pipeline

pytestmark = pytest.mark.slow

PROMPTS = ["red apple", "cat face"]
SETTINGS = {"seed": 0, "steps": 4, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def run(train, tmp_path_factory):
    """A trained run whose averaged weights differ from the raw ones."""
    return train(tmp_path_factory.mktemp("runs") / "run")


def pixels(images):
    return np.stack([np.asarray(image) for image in images])


def test_a_image_depends_on_its_seed_and_place_only(run):
    pipeline = load_pipeline(run.folder)
    together, alone = sample(pipeline, PROMPTS, **SETTINGS), sample(pipeline, PROMPTS[:1], **SETTINGS)
    torch.manual_seed(123)
    again = sample(pipeline, PROMPTS, **SETTINGS)
    other = sample(pipeline, PROMPTS, **SETTINGS | {"seed": 1})
    assert np.array_equal(pixels(together), pixels(again))
    assert np.abs(pixels(together)[0].astype(int) - pixels(alone)[0]).max() <= 1  # rounding of another batch size
    assert not np.array_equal(pixels(together), pixels(other))


def test_stock_diffusers_loads_the_export_with_the_trained_scheduler(run):
    pipeline = StableDiffusionPipeline.from_pretrained(run.folder / "model")
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    image = pipeline("red apple", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (64, 64, 3)
    assert np.isfinite(image).all()


def test_the_prediction_type_that_was_trained_is_exported(train, tmp_path):
    run = train(tmp_path / "run", "scheduler=epsilon", "steps=1")
    assert StableDiffusionPipeline.from_pretrained(run.folder / "model").scheduler.config.prediction_type == "epsilon"


def test_the_export_has_averaged_and_raw_weights(run):
    """They are those of the last checkpoint, which loads too."""
    for weights in ("ema", "raw"):
        exported = load_pipeline(run.folder, weights).unet.state_dict()
        saved = load_pipeline(run.folder / "checkpoints" / "step-000010", weights).unet.state_dict()
        assert all(torch.equal(exported[name], saved[name]) for name in saved)
    averaged, raw = (load_pipeline(run.folder, weights).unet.state_dict() for weights in ("ema", "raw"))
    assert any(not torch.equal(averaged[name], raw[name]) for name in raw)
    stock = UNet2DConditionModel.from_pretrained(run.folder / "model", subfolder="unet", variant="non_ema")
    assert all(torch.equal(value, raw[name]) for name, value in stock.state_dict().items())


def test_an_unfinished_run_is_sampled_from_its_newest_checkpoint(run, tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("config.yaml", "checkpoints"):
        (tmp_path / "run" / name).symlink_to(run.folder / name)
    pipeline = load_pipeline(tmp_path / "run")
    assert torch.equal(pipeline.unet.conv_in.weight, load_pipeline(run.folder).unet.conv_in.weight)


def test_command_line(run, tmp_path, capsys):
    out = tmp_path / "new" / "samples.png"
    main([str(run.folder), *PROMPTS, "--steps", "2", "--images", "3", "--out", str(out)])
    assert capsys.readouterr().out.strip() == str(out)
    with Image.open(out) as sheet:
        assert sheet.width > 2 * 64
        assert sheet.height > 3 * 64


@pytest.mark.parametrize(
    ("source", "message"),
    [("./nowhere", "holds no pipeline"), ("nobody/nothing", "nobody/nothing")],
)
def test_a_missing_model_is_one_clear_line(source, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as end:
        failing.run(main, [source, "red apple", "--out", str(tmp_path / "s.png")])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("t2i: ")
    assert message in error


def test_a_run_folder_cannot_call_what_it_likes(run, tmp_path):
    """A checkpoint of somebody else's run, whose configuration has given itself leave to call anything."""
    shutil.copytree(run.folder / "checkpoints", tmp_path / "checkpoints")
    cfg = OmegaConf.load(run.folder / "config.yaml")
    cfg.model = {"_target_": "os.mkdir", "path": str(tmp_path / "harm")}
    cfg.allowed_targets = ["os"]
    OmegaConf.save(cfg, tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match=r"model._target_=os.mkdir calls code outside of t2i"):
        load_pipeline(tmp_path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("option", ["--images", "--steps"])
@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_an_option_that_counts_something_is_at_least_one(option, value):
    with pytest.raises(ConfigError, match=f"{option}: {value} must be a whole number of at least 1"):
        main(["tiny", "red apple", f"{option}={value}"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["multirun/typo"], "multirun/typo: no such run in multirun/; did you mean multirun/typos?"),
        (["multirun/qqqq"], "multirun/qqqq: no such run in multirun/; there are other, typos"),
        (["tiny", "--seed", str(2**64)], f"--seed={2**64} must be from 0 to {2**63 - 1}"),
        (["tiny", "--seed", str(2**63 - 1), "--images", "2"], "--seed and --images="),
        (["tiny", "--seed", "-1"], "--seed=-1 must be from 0 to"),
        (["tiny", "--out", "cat"], "--out=cat has no suffix of an image; write for example --out cat.png"),
        (["tiny", "--out", "file/cat.png"], "--out=file/cat.png: file is a file; use another name"),
        (["tiny", "--out", "folder.png"], "folder.png is a folder; use another name"),
    ],
)
def test_a_command_line_that_cannot_work_is_answered_before_anything_is_loaded(
    arguments, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("multirun/typos", "multirun/other", "folder.png"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").touch()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as refused:
        main([*arguments, "cat"])
    assert message in str(refused.value)
