"""What the images of two models have in common: prompts, seeds and noise; and that none is drawn twice."""

from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from t2i.config import ConfigError
from t2i.evaluation.image_battery import (
    TOGETHER,
    Drawn,
    ImageBattery,
    distinct,
    draw_batch,
    missing_batches,
    spread,
    write_batch,
)
from t2i.runs.image_files import all_images, images_folder, read_images
from t2i.runs.scores_file import KEY, StoredScores, read_scores, stored_metrics, write_scores

PROMPTS = ["red apple", "cat face", "sun"]


def battery(prompts=PROMPTS, seeds=(0, 1), **settings):
    return ImageBattery(list(prompts), list(seeds), **{"steps": 4, "guidance_scale": 3.0} | settings)


def noise(of, prompt, seed):
    return of.random(of.prompts.index(prompt), seed).standard_normal(8)


def test_noise_is_a_function_of_prompt_and_seed_alone():
    alone, reordered = battery(["sun"], [1]), battery(PROMPTS[::-1], [3, 1], guidance_scale=7.0)
    assert np.array_equal(noise(battery(), "sun", 1), noise(alone, "sun", 1))
    assert np.array_equal(noise(battery(), "sun", 1), noise(reordered, "sun", 1))
    assert not np.array_equal(noise(battery(), "sun", 1), noise(battery(), "sun", 0))
    assert not np.array_equal(noise(battery(), "sun", 1), noise(battery(), "cat face", 1))


def test_the_hash_is_that_of_all_that_determines_the_images():
    others = [
        battery(PROMPTS[:2]),
        battery(seeds=[0]),
        battery(steps=5),
        battery(guidance_scale=1.0),
        battery(sampler="EulerDiscreteScheduler"),
        battery(size=32),
    ]
    assert len({battery().hash, *(other.hash for other in others)}) == 1 + len(others)
    assert battery(guidance_scale=3).hash == battery(guidance_scale=3.0).hash


def grey(places, randoms, *, steps, guidance_scale, size, asked=None):
    """Stands in for a pipeline: one grey image for each noise."""
    if asked is not None:
        asked += places
    return [Image.new("RGB", (8, 8), (random.integers(256),) * 3) for random in randoms]


def draw_all(of, files, **options):
    for cells in missing_batches(files):
        write_batch(files, cells, draw_batch(of, cells, partial(grey, **options)))


def test_what_an_interrupted_evaluation_drew_is_not_drawn_again(tmp_path):
    of = battery([f"prompt {i}" for i in range(TOGETHER)], [0, 1, 2])
    left_alone, interrupted = of.files(tmp_path / "a"), of.files(tmp_path / "b")
    for files in (left_alone, interrupted):
        files.write_index()
    draw_all(of, left_alone)
    first, *_ = missing_batches(interrupted)
    write_batch(interrupted, first, draw_batch(of, first, grey))
    asked = []
    draw_all(of, interrupted, asked=asked)
    assert len(asked) == 2 * TOGETHER
    assert [file.read_bytes() for file in sorted((tmp_path / "a").glob("*.png"))] == [
        file.read_bytes() for file in sorted((tmp_path / "b").glob("*.png"))
    ]


def test_a_run_finds_its_images_by_battery_and_step(tmp_path):
    of = battery()
    for step in (10, 20):
        files = of.files(images_folder(tmp_path, of.hash, step), weights="abc")
        files.write_index()
        draw_all(of, files)
    found = all_images(tmp_path)
    assert list(found) == [(of.hash, 10), (of.hash, 20)]
    assert read_images(found[of.hash, 20].folder) == files
    assert found[of.hash, 20].missing() == []
    images = Drawn(files)
    assert len(images) == len(PROMPTS) * 2
    assert images[3].tobytes() == Image.open(files.file(1, 1)).tobytes()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"hash": 1, "prompts": [], "seeds": [], "settings": {}}'])
def test_a_damaged_index_is_named(tmp_path, content):
    of = battery()
    files = of.files(images_folder(tmp_path, of.hash, 10))
    files.write_index()
    (files.folder / "index.json").write_text(content)
    with pytest.raises(ConfigError, match=r"index\.json.*drawn again"):
        all_images(tmp_path)


def test_scores_are_read_as_they_were_written(tmp_path):
    scores = StoredScores(np.arange(6.0).reshape(3, 2), 2.5, "higher", "tiny", ["few images"], {"pairs": [[0, 1]]})
    write_scores(tmp_path, "clip_score", scores)
    read = read_scores(tmp_path, "clip_score")
    assert stored_metrics(tmp_path) == ["clip_score"]
    assert np.array_equal(read.values, scores.values)
    assert (read.value, read.better, read.identity, read.notes, read.details) == (
        scores.value,
        scores.better,
        scores.identity,
        scores.notes,
        scores.details,
    )


@pytest.mark.parametrize("content", [b"", b"PAR1", b"\x00" * 64])
def test_damaged_scores_are_named(tmp_path, content):
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "clip_score.parquet").write_bytes(content)
    with pytest.raises(ConfigError, match=r"clip_score\.parquet can't be read.*computes it again"):
        read_scores(tmp_path, "clip_score")


@pytest.mark.parametrize("facts", [b"[]", b"{}", b"[" * 100_000])
def test_facts_that_are_none_are_named(tmp_path, facts):
    table = pa.table({"row": [0], "image": [0], "value": [1.0]}).replace_schema_metadata({KEY: facts})
    (tmp_path / "scores").mkdir()
    pq.write_table(table, tmp_path / "scores" / "clip_score.parquet")
    with pytest.raises(ConfigError, match=r"clip_score\.parquet can't be read.*computes it again"):
        read_scores(tmp_path, "clip_score")


def test_items_are_spread_by_their_weight():
    weights = np.array([1.0] * 10 + [0.0] * 10 + [3.0] * 10)
    chosen = np.array(spread(weights, 8))
    assert len(chosen) == 8
    assert (chosen < 10).sum() == 2
    assert ((chosen >= 10) & (chosen < 20)).sum() == 0
    assert spread(weights[:10], 100) == list(range(10))
    assert distinct(["a", "b", "a", "c"]) == [0, 1, 3]
