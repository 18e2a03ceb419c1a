"""What Hydra refuses is explained in one line."""

import pytest
from helpers.runs import compose
from hydra.errors import HydraException

from t2i.config.misspelt import explain, misspelt


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("optimizer.lrr=1", "optimizer.lr"), ("los=mse", "loss"), ("loss.gamma=5", "loss.snr_gamma"), ("step=3", "steps")],
)
def test_a_misspelt_key_is_answered_with_the_most_similar_one(typed, meant):
    assert misspelt(["dataset=openmoji", typed, "seed=1", "+new.key=3"]) == {typed.partition("=")[0]: meant}


def test_settings_of_an_option_in_another_folder_are_not_taken_for_misspelt():
    """--config-dir may bring options of which only Hydra knows."""
    assert misspelt(["loss=mine", "loss.mine=3", "step=3"]) == {"step": "steps"}


@pytest.mark.parametrize(
    ("overrides", "explanation"),
    [
        (["los=mse"], "los is not a setting; did you mean loss? (+los=... would add it)"),
        (["qqq=1"], "qqq is not a setting; `t2i settings` lists them all (+qqq=... would add it)"),
        (["loss=minsnrr"], "loss=minsnrr is not an option; did you mean minsnr? Choose from cosmap, debiased"),
        (["loss=l2"], "loss=l2 is not an option; choose from cosmap, debiased, edm"),
        (["steps"], "steps can't be read (missing EQUAL at '<EOF>'); write KEY=VALUE"),
        (["~qqq"], "Could not delete from config. 'qqq' does not exist."),
        (["hydra/launcher=proceses"], "hydra/launcher=proceses is not an option; did you mean processes?"),
    ],
)
def test_the_explanation_is_one_line(overrides, explanation):
    with pytest.raises(HydraException) as error:
        compose(*overrides)
    shown = explain(error.value, overrides)
    assert shown.startswith(explanation)
    assert "\n" not in shown
