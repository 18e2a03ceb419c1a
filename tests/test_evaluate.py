"""Judging by images, in training and by `t2i evaluate`: what is kept, compared and refused."""

import errno
import json
import multiprocessing
import signal
from pathlib import Path

import numpy as np
import pytest
from helpers.dying import train_and_die
from PIL import Image

from t2i import image_grid
from t2i.cli import failing
from t2i.config import ConfigError
from t2i.evaluate import choose, main
from t2i.evaluation.image_battery import TOGETHER
from t2i.runs.image_files import all_images
from t2i.runs.scores_file import read_scores

pytestmark = pytest.mark.slow

FEW = ["evaluation.items=6", "evaluation.steps=2", "metric=[nearest_reference]"]


@pytest.fixture(scope="module")
def judged(train, tmp_path_factory):
    """A run that is judged by its images at the end."""
    return train(tmp_path_factory.mktemp("runs") / "judged", "evaluate_every=10", *FEW)


def drawn(run):
    return next(images for (_, step), images in all_images(run.folder).items() if step == 10)


def mtimes(images):
    return {file.name: file.stat().st_mtime_ns for file in images.folder.glob("*.png")}


def test_a_run_keeps_its_images_scores_and_their_mean(judged):
    images = drawn(judged)
    scores = read_scores(images.folder, "nearest_reference")
    assert images.missing() == []
    assert images.folder.name == "step-000010"
    assert scores.values.shape == (len(images.prompts), len(images.seeds))
    assert judged.latest()["images/nearest_reference"] == scores.value == scores.values.mean()


def test_evaluating_changes_nothing_that_is_trained(judged, train, tmp_path):
    plain = train(tmp_path / "plain")
    for file in ("denoiser.safetensors", "ema.safetensors"):
        paths = [run.folder / "checkpoints" / "step-000010" / file for run in (judged, plain)]
        assert paths[0].read_bytes() == paths[1].read_bytes()
    losses = [[line["train/loss"] for line in run.metrics() if "train/loss" in line] for run in (judged, plain)]
    assert losses[0] == losses[1]


def test_a_finished_run_is_not_drawn_again(judged, capsys):
    before = mtimes(drawn(judged))
    main([str(judged.folder)])
    assert mtimes(drawn(judged)) == before
    assert "nearest_reference" in capsys.readouterr().out


def test_the_command_draws_what_training_draws(judged):
    """From the exported weights, to the rounding of 8 bits, and just what is missing."""
    images = drawn(judged)
    kept = {file: np.asarray(Image.open(file)).astype(int) for file in images.folder.glob("*.png")}
    lost = images.file(0, 0)
    lost.unlink()
    main([str(judged.folder)])
    assert all(np.abs(np.asarray(Image.open(file)) - before).max() <= 1 for file, before in kept.items())
    assert images.missing() == []


def test_images_of_other_weights_are_drawn_again(judged):
    from t2i.experiment.image_evaluation import begun

    images = drawn(judged)
    assert begun(images, images.weights)
    assert begun(images)
    other = type(images)(**vars(images) | {"weights": "other", "folder": images.folder.with_name("step-000011")})
    other.write_index()
    assert not begun(images.__class__(**vars(other) | {"weights": "new"}), "new")


def test_sources_of_every_kind_are_compared_prompt_by_prompt(judged, small_pipeline, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other tool"
    other.mkdir()
    images = drawn(judged)
    for i, prompt in enumerate(images.prompts):
        for seed in images.seeds:
            Image.open(images.file(i, seed)).save(other / f"{prompt}-{seed}.png")
    main([str(judged.folder), str(other), str(small_pipeline), *FEW, "--grid", "grid.png"])
    text = capsys.readouterr().out
    same = next(line for line in text.splitlines() if line.startswith("│ other tool") and "within noise" in line)
    assert "+0.000" in same
    assert Image.open(tmp_path / "grid.png").width > 6 * 64
    (elsewhere,) = (tmp_path / "multirun" / "evaluated").iterdir()
    assert all_images(elsewhere)


def test_a_sweep_is_its_finished_runs(judged, tmp_path, capsys):
    from t2i.experiment.judged_models import runs_in

    sweep = tmp_path / "sweep"
    sweep.mkdir()
    (sweep / "a").symlink_to(judged.folder)
    (sweep / "b").mkdir()
    (sweep / "b" / "config.yaml").write_text("seed: 0\n")
    assert runs_in(str(sweep)) == [str(sweep / "a")]
    assert runs_in(str(judged.folder)) == [str(judged.folder)]
    assert runs_in("tiny") == ["tiny"]
    (sweep / "a").unlink()
    with pytest.raises(ConfigError, match="holds no finished run"):
        runs_in(str(sweep))


def test_several_guidance_scales_give_a_curve(judged, tmp_path, capsys):
    out = tmp_path / "curves" / "guidance.png"
    main([str(judged.folder), "--guidance-scale", "1,2", "--curve", str(out)])
    assert "judged, guidance 2" in capsys.readouterr().out
    assert Image.open(out).width > 300


def test_emoji_are_prompts_whose_scores_lie_between_those_of_real_images_and_shuffled_prompts(
    small_pipeline, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    command = [str(small_pipeline), "--groups", "animals,food", "--captions", "6", "--steps", "1"]
    main([*command, "evaluation.seeds=[0]", "metric=[clip_score,nearest_reference]", "evaluation.clip=tiny"])
    shown = capsys.readouterr().out
    assert "6 prompts, 1 images of each" in shown
    cells = {row[0].strip(): row[1:3] for line in shown.splitlines() if len(row := line.split("│")[1:-1]) == 3}
    untrained, real = (
        float(cells[name][0].split()[0].replace("−", "-")) for name in (small_pipeline.name, "real images")
    )
    assert untrained < 0.3 < real
    assert cells["shuffled prompts"][1].strip() == "–"  # it needs the prompt's own reference
    items = choose("animals,food", "train", 8)
    assert {item.group for item in items} == {"animals", "food"}
    with pytest.raises(ConfigError, match="--groups plants: no such group"):
        choose("plants", "train", 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "at least one run"),
        (["evaluation.seeds=[0,0]"], r"evaluation\.seeds=\[0, 0\] must be a list of different whole numbers"),
        (["evaluation.seeds=3"], r"evaluation\.seeds=3 must be a list"),
        (["evaluation.prompts=3"], r"evaluation\.prompts=3 is not a file; give a \.txt"),
        (["evaluation.prompts=nowhere.txt"], r"evaluation\.prompts=nowhere\.txt is not a file"),
        (["evaluation.prompts=[red apple]"], r"metric\.nearest_reference needs a real image for each prompt"),
        (["evaluation.sampler=Foo"], r"evaluation\.sampler=Foo can't take the place"),
        (["--guidance-scale", "x"], "x must be a number"),
        (["lora.safetensors"], "name it with --base"),
        (["evaluation.unknown=1"], "unknown"),
    ],
    ids=str,
)
def test_a_mistake_is_named(judged, arguments, message):
    with pytest.raises(Exception, match=message):  # Hydra has exceptions of its own
        main([*([str(judged.folder)] if arguments else ["seed=1"]), *arguments, FEW[2], FEW[1]])


def test_a_full_disk_is_named_after_the_scores(judged, tmp_path, monkeypatch, capsys):
    class FullDisk:
        def save(self, file):
            Path(file).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(image_grid, "grid", lambda *_: FullDisk())
    out = tmp_path / "grid.png"
    with pytest.raises(SystemExit) as end:
        failing.run(main, [str(judged.folder), "--grid", str(out)])
    shown = capsys.readouterr()
    assert end.value.code == 2
    assert shown.err.endswith(f"t2i: {out}: No space left on device; free some space there, or write elsewhere\n")
    assert "nearest_reference" in shown.out
    assert not list(tmp_path.iterdir())


def test_a_folder_without_images_is_named(tmp_path):
    with pytest.raises(ConfigError, match="holds neither a model nor images"):
        main([str(tmp_path)])


def test_a_stranger_s_run_opens_no_links_of_its_data_set(judged, tmp_path):
    from t2i.experiment.evaluation_settings import evaluation_settings

    config = json.loads(json.dumps(judged.config))
    config["dataset"]["follow_links"] = True
    from t2i.runs.config_file import write_config

    write_config(tmp_path, config)
    assert evaluation_settings(tmp_path, []).dataset.follow_links is False


def test_without_a_run_the_prompts_are_of_the_data_that_a_run_trains():
    from helpers.runs import compose

    from t2i.experiment.evaluation_settings import evaluation_settings

    for overrides in ([], ["dataset=openmoji"]):
        assert evaluation_settings(None, overrides).dataset == compose(*overrides).dataset


def test_where_nothing_is_held_out_prompts_are_needed(small):
    from types import SimpleNamespace

    from helpers.runs import compose

    from t2i.experiment.image_evaluation import make_image_evaluation

    cfg = compose(*small)
    nothing = type("Nothing", (), {"weights": np.zeros(0), "captions": (), "__len__": lambda self: 0})()
    data = SimpleNamespace(train=None, validation=nothing)
    with pytest.raises(ConfigError, match=r"no image is held out.*evaluation\.prompts=FILE"):
        make_image_evaluation(cfg, {}, data)
    cfg.evaluation.prompts = ["red apple"]
    assert list(make_image_evaluation(cfg, {}, data).battery.prompts) == ["red apple"]


def test_lora_weights_on_their_base_draw_what_their_run_draws(train, small_pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = train(tmp_path / "lora", "adapter=lora", "steps=1")
    weights = tmp_path / "my.safetensors"
    weights.write_bytes((run.folder / "model" / "pytorch_lora_weights.safetensors").read_bytes())
    main([str(weights), str(run.folder), "--base", str(small_pipeline), *FEW])
    (elsewhere,) = (tmp_path / "multirun" / "evaluated").iterdir()
    ((_, on_base),), ((_, of_run),) = all_images(elsewhere).items(), all_images(run.folder).items()
    for prompt, seed in ((0, 0), (1, 1)):
        pixels = [np.asarray(Image.open(images.file(prompt, seed))).astype(int) for images in (on_base, of_run)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1


def test_an_evaluation_that_is_killed_goes_on(small, tmp_path):
    """The run goes on from its checkpoint before, and keeps the batches that it had drawn; all has the same bits."""
    settings = [*small, "evaluate_every=10", "evaluation.seeds=[0,1,2,3,4,5,6,7]", *FEW]

    def train(folder, call):
        """Killed while the image is written for which `sync` is called so often: 16 + 1 times for a batch."""
        arguments = (folder, settings, "t2i.evaluation.image_battery", "sync", call, signal.SIGKILL)
        process = multiprocessing.get_context("spawn").Process(target=train_and_die, args=arguments)
        process.start()
        process.join()
        return process.exitcode, {file: file.stat().st_mtime_ns for file in folder.glob("images/*/*/[0-9]*.png")}

    code, before = train(tmp_path / "run", TOGETHER + 1 + 3)
    assert (code, len(before)) == (-signal.SIGKILL, TOGETHER + 2)
    kept = {file: file.read_bytes() for file in before}
    code, after = train(tmp_path / "run", -1)
    assert (code, len(after)) == (0, 6 * 8)
    assert sum(after[file] == time for file, time in before.items()) == TOGETHER
    assert all(file.read_bytes() == content for file, content in kept.items())
    assert "images/nearest_reference" in (tmp_path / "run" / "metrics.jsonl").read_text()
