import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from t2i.cli.failing import run
from t2i.weights import compare, main


@pytest.mark.slow
def test_every_combination_with_the_settings_that_it_has():
    labels = [weights.label for weights in compare(["loss=minsnr,debiased", "loss.snr_gamma=1,5", "scheduler=epsilon"])]
    assert labels == ["minsnr snr_gamma=1", "minsnr snr_gamma=5", "debiased"]


@pytest.mark.slow
def test_the_fractions_count_how_often_a_timestep_is_drawn():
    uniform, biased = compare(["loss=mse", "timesteps=uniform,biased", "timesteps.multiplier=3"])
    assert np.allclose(list(uniform.fractions().values()), 1 / 8)
    # A quarter of the timesteps, the noisiest, thrice as often: 3 of 6 parts, in two of eight bins.
    assert np.allclose(list(biased.fractions().values()), [1 / 4] * 2 + [1 / 12] * 6)


@pytest.mark.slow
def test_normalized_weights_have_a_mean_of_one():
    for weights in compare(["loss=minsnr,p2", "loss.normalize=true", "timesteps=uniform,logit_normal"]):
        assert weights.mean == pytest.approx(1)
        assert sum(weights.fractions().values()) == pytest.approx(1)


@pytest.mark.slow
def test_a_table_and_a_plot(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    arguments = ["loss=minsnr,debiased", "scheduler=v_prediction", "--out", str(tmp_path / "a" / "weights.png")]
    main([*arguments, "loss.snr_gamma=5,7"])
    shown = capsys.readouterr().out
    for word in ["minsnr snr_gamma=7", "debiased", "mean weight", "zero-weight steps", "SNR 6.3–1175"]:
        assert word in shown
    assert max(map(len, shown.replace(str(tmp_path), "").splitlines())) <= 80
    assert Image.open(tmp_path / "a" / "weights.png").size == (960, 600)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loss=l2"], "t2i: loss=l2 is not an option; choose from cosmap, debiased"),
        (["los=mse"], "t2i: los is not a setting; did you mean loss?"),
        (["loss=mse,debiased", "loss.snr_gamma=5"], "t2i: loss.snr_gamma: none of the chosen options has this setting"),
        (["loss.snr_gamma=fast"], "t2i: loss.snr_gamma=fast must be a number"),
        (["loss.snr_gamma=-1,5"], "t2i: loss.snr_gamma=-1 must be positive"),
        (["loss=["], "t2i: loss=[ can't be read (no viable alternative at input '[')"),
    ],
)
def test_mistakes_end_in_one_clear_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        run(main, arguments)
    assert end.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith(message)
    assert len(shown.splitlines()) == 1


def test_nothing_heavy_is_imported_at_the_start():
    code = "import sys, t2i.weights; print(sorted({'torch', 'diffusers', 'matplotlib', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
