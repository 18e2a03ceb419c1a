"""What Hydra refuses is explained in one line."""

import re

import pytest
from helpers.runs import compose
from hydra.errors import HydraException

from t2i.config import ConfigError
from t2i.config.checks import check_types
from t2i.config.compose import compose as compose_as_typed
from t2i.config.misspelt import explain, misspelt, refuse_flags, refuse_without_multirun


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        *(("optimizer.lrr=1", "optimizer.lr"), ("los=mse", "loss"), ("loss.gamma=5", "loss.snr_gamma")),
        *(("step=3", "steps"), ("lr=1e-4", "optimizer.lr"), ("snr_gamma=1", "loss.snr_gamma")),
        *(("learningRate=1", "optimizer.lr"), ("Batch_Size=1", "batch_size"), ("max_train_steps=1", "steps")),
        *(("learning_rate=1", "optimizer.lr"), ("train_batch_size=3", "batch_size"), ("rank=4", "adapter.rank")),
    ],
)
def test_a_misspelt_key_is_answered_with_the_most_similar_one(typed, meant):
    assert misspelt(["dataset=openmoji", typed, "seed=1", "+new.key=3"]) == {typed.partition("=")[0]: meant}


def test_a_launcher_without_a_sweep_is_refused():
    with pytest.raises(ConfigError, match=r"hydra/launcher=racing is for sweeps; add -m, as in: t2i train -m hydra/"):
        refuse_without_multirun(["hydra/launcher=racing", "seed=0"])
    refuse_without_multirun(["hydra/launcher=racing", "seed=0,1", "-m"])


def test_an_option_of_a_launcher_is_answered_likewise():
    arguments = ["hydra/launcher=racing", "hydra.launcher.tolerence=0.1", "hydra.launcher.resources.a100=1"]
    assert misspelt(arguments) == {"hydra.launcher.tolerence": "hydra.launcher.tolerance"}


def test_settings_of_an_option_in_another_folder_are_not_taken_for_misspelt():
    """--config-dir may bring options of which only Hydra knows."""
    assert misspelt(["loss=mine", "loss.mine=3", "step=3"]) == {"step": "steps"}


def test_a_setting_of_another_option_is_answered_with_the_options_that_have_it():
    with pytest.raises(HydraException) as error:
        compose("dataset.path=pics")
    shown = explain(error.value, ["dataset.path=pics"])
    assert "dataset=folder, hub" in shown
    assert "dataset=folder dataset.path=pics (Hydra: Could not override 'dataset.path'" in shown


def test_our_line_comes_first_and_hydras_behind_it():
    with pytest.raises(HydraException) as error:
        compose("lr=1e-4")
    assert explain(error.value, ["lr=1e-4"]).startswith(
        "lr is not a setting; did you mean optimizer.lr? (+lr=... would add it); type optimizer.lr=1e-4 (Hydra: Could"
    )


def test_a_value_that_cannot_be_read_is_answered_with_the_quotes_that_it_needs():
    with pytest.raises(HydraException) as error:
        compose("my.own=d/ä b")
    assert """write KEY=VALUE, in quotes if it has spaces or brackets: 'my.own="d/ä b"'""" in explain(error.value, [])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["--learning_rate", "1e-4"], "optimizer.lr=1e-4"),
        (["--learning-rate=1e-4"], "optimizer.lr=1e-4"),
        (["--steps", "5", "loss=mse"], "steps=5"),
        (["loss=mse", "--snr_gamma=5"], "loss.snr_gamma=5"),
        (["--random_flip", "--cfg", "job"], "dataset.flip=true"),
        (["-lr", "1e-4"], "optimizer.lr=1e-4"),
        (["--train_data_dir=pics"], "dataset.path=pics"),
    ],
)
def test_options_of_other_trainers_are_answered_with_the_setting(typed, meant):
    with pytest.raises(ConfigError, match="is not an option; settings are typed as KEY=VALUE") as refused:
        refuse_flags(typed, {"--cfg"})
    assert f"here {meant} " in str(refused.value)
    refuse_flags(["--cfg", "job", "~x", "loss=-1"], {"--cfg"})


@pytest.mark.parametrize("flag", ["--help_me", "--zzz"])
def test_an_option_that_is_like_no_setting_gets_no_advice(flag):
    with pytest.raises(ConfigError, match=rf"^{flag} is not an option; settings .* as KEY=VALUE \(`t2i settings`"):
        refuse_flags([flag, "x"], set())


def test_resuming_needs_no_option():
    with pytest.raises(ConfigError, match="a run goes on with the command that began it and run=NAME"):
        refuse_flags(["--resume_from_checkpoint", "latest"], set())


@pytest.mark.slow
@pytest.mark.parametrize("typed", ["~seed", "~loss.snr_gamma", "~samples.prompts"])
def test_a_setting_that_is_taken_away_is_named_with_its_default(typed):
    with pytest.raises(ConfigError, match=rf"^{typed}: a setting can't be taken away; give it .* {typed[1:]}="):
        check_types(compose(typed), compose())


def test_a_setting_that_another_option_has_comes_with_that_option():
    with pytest.raises(HydraException) as error:
        compose("adapter.path=x")
    assert "adapter=lora adapter.path=x (Hydra: " in explain(error.value, ["adapter.path=x"])


@pytest.mark.parametrize("typed", ["ema=false", "adapter=True", "loss=5", "tracker=1e3"])
def test_what_is_no_name_is_no_option(typed):
    with pytest.raises(HydraException) as error:
        compose_as_typed([typed])
    group, _, value = typed.partition("=")
    assert re.match(rf"{group}={value} is not an option; (did you mean \w+\? C|c)hoose from", explain(error.value, []))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "explanation"),
    [
        (["model=SDXL"], "model=SDXL is not an option; did you mean sdxl? Choose from flux1"),
        (["loss=min-snr"], "loss=min-snr is not an option; did you mean minsnr? Choose from cosmap"),
        (["los=mse"], "los is not a setting; did you mean loss? (+los=... would add it)"),
        (["qqq=1"], "qqq is not a setting; `t2i settings` lists them all (+qqq=... would add it)"),
        (["samples.num=0"], "samples.num is not a setting; `t2i settings samples.` lists those of samples (+samples"),
        (["samples.promts=[a]"], "samples.promts is not a setting; did you mean samples.prompts?"),
        (["loss=minsnrr"], "loss=minsnrr is not an option; did you mean minsnr? Choose from cosmap, debiased"),
        (["loss=l2"], "loss=l2 is not an option; choose from cosmap, debiased, edm"),
        (["steps"], "steps can't be read (missing EQUAL at '<EOF>'); write KEY=VALUE"),
        (
            ["steps=3 run=z"],
            "steps=3 run=z can't be read (mismatched input '=' expecting <EOF>); type each setting by itself: steps=3",
        ),
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
