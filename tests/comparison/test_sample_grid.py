import numpy as np
import pytest
from helpers.synthetic import PROMPTS, write_run
from PIL import Image

from t2i.comparison.grouping import compare
from t2i.comparison.results import read_results
from t2i.comparison.sample_grid import LARGEST, gallery, gallery_image, row_note, strip
from t2i.runs.samples_file import REAL, write_samples


@pytest.fixture
def comparison(tmp_path):
    write_run(tmp_path / "a", "loss.snr_gamma=5", "seed=1")
    write_run(tmp_path / "b", "loss.snr_gamma=1", "seed=1")
    write_run(tmp_path / "c", "loss.snr_gamma=1", "seed=2", state="failed", validated=(0, 100), error="ValueError: no")
    write_run(tmp_path / "d", "loss.snr_gamma=1", "seed=3", "samples.seed=7")
    write_run(tmp_path / "e", "loss.snr_gamma=1", "seed=4", validated=())
    return compare(read_results([tmp_path]))


def test_a_row_for_every_run_that_drew_the_same_in_the_order_of_the_variants(comparison, tmp_path):
    shown = gallery(comparison)
    assert shown.prompts == PROMPTS
    assert [(run.name, step) for run, step, _ in shown.rows] == [("b", 200), ("a", 200), ("c", 100)]
    assert shown.left_out == ["d was sampled with other settings (samples.*)", "e has no samples"]
    more = gallery(compare(read_results([write_run(tmp_path / "f", "seed=5", validated=()).parent])))
    assert "2 runs have no samples (e, ...)" in more.left_out
    notes = [row_note(comparison, run, step) for run, step, _ in shown.rows]
    assert notes == ["seed=1", "seed=1", "seed=2, failed at step 100"]


def test_the_images_are_those_of_the_strip(comparison):
    run, _, images = gallery(comparison).rows[0]
    assert [image.size for image in images] == [(16, 16)] * 2
    with Image.open(run.folder / "samples" / "step-000200.png") as drawn:
        assert np.array_equal(np.asarray(strip(images)), np.asarray(drawn))


def test_large_images_are_made_smaller(tmp_path):
    run = write_run(tmp_path / "run")
    Image.new("RGB", (512 * 2, 512)).save(run / "samples" / "step-000200.png")
    ((_, _, images),) = gallery(compare(read_results([tmp_path]))).rows
    assert [image.size for image in images] == [(LARGEST, LARGEST)] * 2


def test_the_image_has_a_row_for_each(comparison):
    shown = gallery(comparison)
    assert gallery_image(comparison, shown).height > (3 + 1) * 96


def test_what_the_base_drew_and_real_images_stand_above(comparison):
    assert [(label, note) for label, note, _ in gallery(comparison).references] == [("before training", "step 0 of b")]
    runs = {run.name: run.folder for run in comparison.results}
    with Image.open(runs["b"] / "samples" / "step-000000.png") as drawn:
        assert np.array_equal(np.asarray(strip(gallery(comparison).references[0][2])), np.asarray(drawn))
    colours = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    write_samples(runs["a"] / "samples" / REAL, colours, PROMPTS)
    (label, _, images), (after, *_) = gallery(comparison).references
    assert (label, after) == ("real images", "before training")
    assert [image.tobytes() for image in images] == [image.tobytes() for image in colours]
    (runs["a"] / "samples" / REAL).write_bytes(b"damaged")
    assert len(gallery(comparison).references) == 1
