import json
import math

import numpy as np
import pytest
from helpers.runs import compose, untimed
from PIL import Image

from t2i.config import ConfigError
from t2i.config.checks import check
from t2i.config.reference import _option as option_of
from t2i.config.reference import load_reference, reference_dataset
from t2i.evaluation.batteries import gaps, gaps_since_start
from t2i.evaluation.metrics import Metric
from t2i.experiment.reference import check_reference
from t2i.runs.errors_file import read_errors


def test_the_gap_is_a_log_ratio_that_counts_from_step_0():
    start = {"val/loss": 0.11, "val/train_loss": 0.1, "ref/loss": 0.2}
    later = {"val/loss": 0.10, "val/train_loss": 0.05, "val/ema/loss": 0.1, "ref/loss": 0.3}
    assert gaps(start) == pytest.approx({"val/gap": math.log(1.1)})
    assert gaps(later) == pytest.approx({"val/gap": math.log(2)})  # of averaged weights, one of the two is missing
    since = gaps_since_start(later | gaps(later), start | gaps(start))
    assert since == pytest.approx({"val/gap_since_start": math.log(2 / 1.1)})
    assert gaps_since_start(gaps(start), gaps(start)) == {"val/gap_since_start": 0.0}


@pytest.mark.slow
def test_a_reference_is_an_option_or_a_folder_at_the_resolution_of_the_run(tmp_path):
    assert reference_dataset(compose()) is None
    option = reference_dataset(compose("validation.reference=openmoji_known", "dataset.resolution=32")).dataset
    assert (option.resolution, option.groups.food, option.groups.flags) == (32, 0.0, 1.0)
    folder = reference_dataset(compose(f"validation.reference={tmp_path}")).dataset
    assert (folder.path, folder.resolution) == (str(tmp_path), 64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no_such", "validation.reference=no_such is neither an option of dataset .* nor a folder"),
        ("no/such", "validation.reference=no/such is neither an option of dataset .* nor a folder"),
        ("hub", "validation.reference=hub: dataset.path must be given; write an option of your own"),
        ("5", "validation.reference=5 must be an option of dataset, a folder, a file of prompts"),
    ],
)
def test_a_reference_that_there_is_not_is_refused_by_its_setting(reference, message):
    cfg = compose(f"validation.reference={reference}")

    def refuse():
        check(cfg, 1)
        reference_dataset(cfg)

    with pytest.raises(ConfigError, match=message):
        refuse()


def test_an_empty_reference_names_its_setting(tmp_path):
    with pytest.raises(ConfigError, match=r"validation.reference=\S*: dataset.path=\S* contains no images"):
        load_reference(compose(f"validation.reference={tmp_path}"))


def as_bytes(file):
    file.write_bytes(b"not an image")


def as_link(file):
    file.unlink()
    file.symlink_to("/etc/hostname")


def as_bomb(file):
    Image.new("1", (30_000, 30_000)).save(file)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (as_bytes, "1.png is not an image in a format that t2i reads"),
        (as_link, "1.png lies outside the data folder, at /etc/hostname"),
        (as_bomb, "1.png is too large"),
    ],
)
def test_a_reference_with_such_an_image_is_refused_before_anything_is_loaded(spoil, reason, tmp_path):
    for place in range(3):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{place}.png")
        (tmp_path / f"{place}.txt").write_text(f"number {place}")
    spoil(tmp_path / "1.png")
    with pytest.raises(ConfigError) as error:
        load_reference(compose(f"validation.reference={tmp_path}"))
    message = str(error.value)
    assert message.startswith(f"validation.reference={tmp_path}: dataset.path={tmp_path}: {reason}")
    assert "\n" not in message
    assert message.endswith("; for the reference, an option of your own sets them (--config-dir)")


def test_a_file_where_the_folder_of_a_reference_should_be_is_refused(tmp_path):
    (tmp_path / "file.png").write_bytes(b"")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    for name in ("file.png", "dangling"):
        with pytest.raises(ConfigError, match=rf"validation.reference={tmp_path / name} is neither an option"):
            check_reference(compose(f"validation.reference={tmp_path / name}"))


def test_an_option_for_the_reference_gives_itself_no_permission(tmp_path, monkeypatch):
    def permissive(name, cfg):
        return {**option_of(name, cfg), "follow_links": True}

    monkeypatch.setattr("t2i.config.reference._option", permissive)
    for given, allowed in ((False, False), (True, True)):
        cfg = compose("dataset=folder", f"dataset.path={tmp_path}", f"validation.reference={tmp_path}")
        cfg.dataset.follow_links = given
        if allowed:
            assert reference_dataset(cfg).dataset.follow_links
            continue
        with pytest.raises(ConfigError, match=r"follow_links=true comes from a file; it counts on the command line"):
            reference_dataset(cfg)


def test_training_images_are_not_measured_twice():
    with pytest.raises(ConfigError, match=r"validation.images=train measures training images already"):
        check(compose("validation.images=train", "validation.train_items=4"), 1)


@pytest.mark.slow
def test_further_batteries_change_no_bit_and_are_stored_like_the_first(train, tmp_path):
    plain = train(tmp_path / "plain", "steps=4", "validate_every=2", "save_every=2")
    more = ("validation.train_items=3", "validation.reference=openmoji_known")
    settings = ("steps=4", "validate_every=2", "save_every=2", *more)
    train(tmp_path / "more", *settings, "stop_at=2")
    run = train(tmp_path / "more", *settings)

    for before, after in zip(untimed(plain.metrics()), untimed(run.metrics()), strict=True):
        assert before.items() <= after.items()
    assert run.metrics()[0]["val/gap_since_start"] == 0.0
    logged = {"train": ("val/train_loss", "val/ema/train_loss"), "reference": ("ref/loss", "ref/ema/loss")}
    for folder, names in logged.items():
        for line in run.metrics():
            if "val/loss" not in line:
                continue
            errors = read_errors(run.folder / "validation" / folder / f"step-{line['step']:06d}.parquet")
            for name, weights in zip(names, ("", "ema/"), strict=True):
                assert Metric.named(name).value(errors[weights]) == pytest.approx(line[name], rel=1e-12)
    manifest = json.loads((run.checkpoints / "step-000004" / "manifest.json").read_text())
    stored = {f"validation/{folder}/step-{step:06d}.parquet" for folder in logged for step in (0, 2, 4)}
    assert stored <= manifest["records"].keys()
    facts = run.info
    assert (facts["train_battery"]["items"], facts["train_battery"]["on"]) == (3, "train")
    assert len({facts[name]["images"] for name in ("battery", "train_battery", "reference_battery")}) == 3
    assert np.isclose(run.latest()["val/gap"], math.log(run.latest()["val/loss"] / run.latest()["val/train_loss"]))


def test_a_file_of_prompts_that_can_not_be_read_names_the_setting(tmp_path):
    for name, content, message in (
        ("a.txt", "\n\n", r"validation.reference=\S*a.txt holds no prompt"),
        ("a.csv", "x\n1\n", r"validation.reference=\S*a.csv has the columns x, but not one of prompt, caption, text"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(ConfigError, match=message):
            check_reference(compose(f"validation.reference={tmp_path / name}"))
    with pytest.raises(ConfigError, match=r"validation.reference=no.txt is not a file"):
        check_reference(compose("validation.reference=no.txt"))


@pytest.mark.slow
def test_the_base_draws_a_reference_of_prompts_once(train, tmp_path):
    """The images are those of the base, whatever is trained; at step 0 two runs have the same ref/loss."""
    (tmp_path / "prompts.txt").write_text("a dog\na cat\nan apple\n")
    settings = [f"validation.reference={tmp_path}/prompts.txt", "samples.steps=2", f"cache_dir={tmp_path}/cache"]
    runs = [train(tmp_path / str(seed), *settings, "steps=2", f"seed={seed}") for seed in range(2)]
    (folder,) = (tmp_path / "cache" / "reference_images").iterdir()
    images = sorted(folder.glob("*.png"))
    assert len(images) == runs[0].info["reference_battery"]["items"] == 3
    assert runs[0].info["reference_battery"] == runs[1].info["reference_battery"]
    first, second = ([line["ref/loss"] for line in run.metrics() if "ref/loss" in line] for run in runs)
    assert first[0] == second[0]
    assert first[1] != second[1]
