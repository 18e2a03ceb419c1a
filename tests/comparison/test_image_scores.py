"""Runs compared by their images: which scores count, in which direction, and what is refused."""

import zlib

import numpy as np
import pytest
from helpers.synthetic import write_run
from PIL import Image

from t2i.compare import main
from t2i.comparison.grouping import compare
from t2i.comparison.metric_choice import choose_metric
from t2i.comparison.results import read_results
from t2i.comparison.tables import difference_rows, variant_rows
from t2i.comparison.wording import sentences
from t2i.config import ConfigError
from t2i.evaluation.image_battery import ImageBattery
from t2i.runs.image_files import images_folder
from t2i.runs.scores_file import StoredScores, write_scores

PROMPTS = [f"prompt {i}" for i in range(40)]


def judge(run, better, direction="higher", guidance=3.0, identity="network", notes=()):
    """Give a run images of its last step whose scores are `better` in the direction that is better."""
    battery = ImageBattery(PROMPTS, [0, 1], steps=4, guidance_scale=guidance)
    step = max(result.step for result in read_results([run]))
    files = battery.files(images_folder(run, battery.hash, step))
    files.write_index()
    Image.new("RGB", (4, 4)).save(files.file(0, 0))
    rng = np.random.default_rng(zlib.crc32(run.name.encode()))
    shared = np.random.default_rng(0).normal(0.7, 0.2, (len(PROMPTS), 1))
    values = shared + 0.02 * rng.standard_normal((len(PROMPTS), 2)) + better * (1 if direction == "higher" else -1)
    scores = StoredScores(values, float(values.mean()), direction, identity, list(notes))
    write_scores(files.folder, "clip_score", scores)


@pytest.fixture
def sweep(tmp_path):
    """Three seeds of two variants, the second of which draws better images, whatever its error."""

    def sweep(**options):
        for gamma, better in ((1, 0.0), (5, 0.05)):
            for seed in range(3):
                run = tmp_path / "sweep" / f"{gamma}-{seed}"
                write_run(run, f"loss.snr_gamma={gamma}", f"seed={seed}", better=0.0)
                judge(run, better, **options)
        return tmp_path / "sweep"

    return sweep


@pytest.mark.parametrize("direction", ["higher", "lower"])
def test_the_better_images_are_found_whichever_direction_is_better(sweep, direction):
    compared = compare(read_results([sweep(direction=direction)]))
    (metric,) = compared.scores
    (verdict,) = compared.verdicts(metric)
    assert verdict.outcome == "better"
    assert abs(verdict.total.estimate) == pytest.approx(0.05, abs=0.01)
    assert variant_rows(compared, metric)[0]["variant"].text == "snr_gamma=5"
    (row,) = difference_rows(compared, metric)
    assert row["difference"].text.startswith("+0.0" if direction == "higher" else "−0.0")
    (_, said), (_, scope) = sentences(compared, metric)
    assert said.startswith("snr_gamma=5 is better than snr_gamma=1 by 0.0")
    assert said.endswith(" in clip_score.")
    assert scope.startswith("3 seeds")


@pytest.mark.slow
def test_the_page_has_them_in_its_switch(sweep, capsys):
    folder = sweep(notes=["few images"])
    main([str(folder), "--metric", "clip_score"])
    page = (folder / "comparison" / "comparison.html").read_text()
    assert '<option value="clip_score"' in page
    assert "clip_score: few images" in page
    assert "clip_score: few images" in capsys.readouterr().out
    assert (folder / "comparison" / "differences.png").is_file()


def test_scores_of_another_network_or_battery_are_not_compared(sweep):
    folder = sweep()
    judge(folder / "1-0", 0.0, identity="other network")
    compared = compare(read_results([folder]))
    assert compared.scores == []
    with pytest.raises(ConfigError, match="not all runs' images were judged by it"):
        choose_metric(compared, "clip_score")
    assert choose_metric(compared, "val/loss") == choose_metric(compared, None)


def test_the_battery_that_most_metrics_share_is_compared(sweep):
    folder = sweep()
    judge(folder / "1-0", 0.0, guidance=7.0)
    compared = compare(read_results([folder]))
    assert [metric.battery for metric in compared.scores] == [
        ImageBattery(PROMPTS, [0, 1], steps=4, guidance_scale=3.0).hash
    ]


def test_damaged_scores_are_left_out(sweep):
    folder = sweep()
    (file,) = (folder / "1-0").glob("images/*/*/scores/clip_score.parquet")
    file.write_bytes(b"PAR1")
    compared = compare(read_results([folder]))
    assert compared.scores == []
    assert compared.verdicts(compared.headline)
